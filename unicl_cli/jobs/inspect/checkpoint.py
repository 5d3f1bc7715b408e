"""Facts of a checkpoint from its files alone: towers, sizes, checksums, suspicious weights; no model is built."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unicl_cli.core.checkpoint_files import EMA, MODEL, OPTIM, TRAINER, fingerprint, read_facts
from unicl_cli.errors import UniclError

SCALE = "logit_scale"
SCALE_MAX = 100.0
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
NUMBERS, STRINGS, TABLES = (
    ("step", "steps", "seed", "batch_size", "world", "rows"),
    ("recipe",),
    ("corpora", "versions"),
)
COPIED_FACTS = {**dict.fromkeys(NUMBERS, int), **dict.fromkeys(STRINGS, str), **dict.fromkeys(TABLES, dict)}
"""Facts copied from ``trainer.json`` if they have this type."""


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the document. Missing or damaged files are listed in ``notes``, and ``whole`` is then false."""
    notes: list[str] = []
    facts = read_trainer_json(folder, notes)
    listed: Mapping[str, Any] = facts.get("files", {})
    names = dict.fromkeys([MODEL, *listed, *(path.name for path in sorted(folder.glob("*.safetensors")))])
    files = [check_file(folder / name, listed.get(name)) for name in names]
    notes += [f"{name}: {file['state']}" for name, file in zip(names, files, strict=True) if file["state"] != "whole"]
    document: dict[str, Any] = {
        "schema": "unicl/inspect/1",
        "kind": "checkpoint",
        "path": str(folder),
        **{key: facts[key] for key, kind in COPIED_FACTS.items() if isinstance(facts.get(key), kind)},
        "whole": not notes,
        "files": files,
        "ema": (folder / EMA).is_file(),
        "optimizer": (folder / OPTIM).is_file(),
    }
    if is_readable(folder / MODEL):
        document |= check_weights(folder / MODEL, notes)
    return document | {"notes": notes}


def read_trainer_json(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return ``trainer.json``, or add a note and return an empty mapping."""
    try:
        return read_facts(folder)
    except FileNotFoundError:
        notes.append(f"{TRAINER} is missing: it is written last, so this checkpoint is unfinished")
    except UniclError as error:
        notes.append(error.message)
    return {}


def check_file(path: Path, known: Any) -> dict[str, Any]:
    """Return size, state (by size and checksum) and number of tensors. ``known`` is [bytes, sha256] or None."""
    if not path.is_file():
        return {"file": path.name, "bytes": 0, "state": "missing"}
    size = path.stat().st_size
    state = "whole"
    if known is None:
        state = f"is not listed in {TRAINER}"
    elif size != known[0]:
        state = f"has {size:,} bytes instead of {known[0]:,}"
    elif fingerprint(path) != known:
        state = "has changed since it was written (checksum)"
    facts: dict[str, Any] = {"file": path.name, "bytes": size, "state": state}
    shapes = read_header(path)
    if shapes is None:
        return facts | ({"state": "is not a safetensors file"} if state == "whole" or known is None else {})
    return facts | {"tensors": len(shapes), "values": sum(count for count, _ in shapes.values())}


def is_readable(path: Path) -> bool:
    """Return True for an existing, whole safetensors file."""
    return path.is_file() and read_header(path) is not None


def read_header(path: Path) -> dict[str, tuple[int, str]] | None:
    """Return the number of values and the type of each tensor; None if the file is cut or not a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {name: (_product(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except (OSError, SafetensorError):
        return None


def _product(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def check_weights(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return parameters per tower, joint width, scale and suspicious tensors, reading one tensor at a time."""
    towers: dict[str, dict[str, Any]] = defaultdict(lambda: {"tensors": 0, "parameters": 0, "buffers": 0, "squares": 0})
    not_finite: list[str] = []
    all_zero: list[str] = []
    types: set[str] = set()
    found: dict[str, Any] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            value: Tensor = file.get_tensor(name)
            types.add(str(value.dtype).removeprefix("torch."))
            tower = towers[tower_of(name)]
            add_tensor(tower, name, value)
            if not bool(torch.isfinite(value).all()):
                not_finite.append(name)
            elif value.ndim > 1 and not bool(value.any()):
                all_zero.append(name)
            if name.rsplit(".", 1)[-1] == SCALE:
                found[SCALE] = float(value.double().exp().max())
            if re.fullmatch(r"model\.image\.proj(ection)?(\.weight)?", name):
                found["embed_dim"] = int(value.shape[0])
    notes += [f"{name} has non-finite values" for name in not_finite[:5]]
    notes += [f"{name} is all zeros" for name in all_zero[:5]]
    if found.get(SCALE, 0) >= 0.999 * SCALE_MAX:
        notes.append(f"logit_scale has reached {found[SCALE]:.1f}, the usual limit of {SCALE_MAX:.0f}")
    listed = [{"tower": name, **tower_facts(tower)} for name, tower in towers.items()]
    return {
        **found,
        "parameters": sum(tower["parameters"] for tower in towers.values()),
        "types": sorted(types),
        "towers": listed,
        "not_finite": not_finite,
        "all_zero": all_zero,
    }


def tower_of(name: str) -> str:
    """Return a tensor's tower: ``image`` for ``model.image.trunk.…``, ``loss`` for ``loss.head.…``."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "model" and rest else first


def add_tensor(tower: dict[str, Any], name: str, value: Tensor) -> None:
    """Add a tensor to the counts of its tower."""
    is_buffer = name.rsplit(".", 1)[-1] in BUFFERS or not value.is_floating_point()
    tower["tensors"] += 1
    tower["buffers" if is_buffer else "parameters"] += value.numel()
    if not is_buffer:
        finite = value.double().nan_to_num(0.0, 0.0, 0.0)
        tower["squares"] += float(finite.square().sum())


def tower_facts(tower: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a tower; ``rms`` is the root mean square of its finite parameters."""
    count = tower["parameters"]
    kept = {key: tower[key] for key in ("tensors", "parameters", "buffers")}
    return {**kept, "rms": (tower["squares"] / count) ** 0.5 if count else None}
