"""A checkpoint folder on disk: its file names, the pointers to it, and the check that it is whole; without torch."""

import hashlib
import json
import mmap
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

MODEL, EMA, OPTIM, TRAINER = "model.safetensors", "ema.safetensors", "optim.safetensors", "trainer.json"
"""The files of a checkpoint; ``trainer.json`` is written last and names the others."""
LATEST, BEST = "latest", "best"
"""Files beside the checkpoints that name one of them."""
_PREFIX = "step-"


def folder_of(root: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return root / f"{_PREFIX}{step:08d}"


def list_folders(root: Path) -> list[Path]:
    """List the checkpoint folders under ``root``, whole or not, from the lowest step to the highest."""
    return sorted(root.glob(f"{_PREFIX}*"))


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint folder; 0 if it names none."""
    number = folder.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else 0


def read_pointer(path: Path) -> str:
    """Return the name of the checkpoint in ``latest`` or ``best``; an empty string if there is no such file."""
    return Path(path.read_text(encoding="utf-8", errors="replace").strip()).name if path.is_file() else ""


def fingerprint(path: Path) -> list[Any]:
    """Return [bytes, sha256] of a file; cached until the file changes."""
    about = path.stat()
    return [about.st_size, _hash_file(path, about.st_size, about.st_mtime_ns)]


@lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, touched: int) -> str:
    del touched
    if not size:
        return hashlib.sha256().hexdigest()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return hashlib.sha256(whole).hexdigest()  # one call, during which other threads run


def is_whole(folder: Path) -> bool:
    """Return whether every file has the size and checksum in ``trainer.json``, which is written last."""
    try:
        files = json.loads((folder / TRAINER).read_text(encoding="utf-8"))["files"]
        sized = all((folder / name).stat().st_size == size for name, (size, _) in files.items())
        return sized and all(fingerprint(folder / name) == known for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def newest(root: Path) -> Path | None:
    """Return the newest whole checkpoint under ``root``: the one that ``latest`` names, else the highest step."""
    named = read_pointer(root / LATEST)
    if named and is_whole(root / named):
        return root / named
    return next((folder for folder in reversed(list_folders(root)) if is_whole(folder)), None)


def list_damaged(root: Path) -> list[Path]:
    """List the checkpoints under ``root`` that `newest` skips: newer than the one it returns, but not whole."""
    taken = newest(root)
    newer = [folder for folder in list_folders(root) if taken is None or folder.name > taken.name]
    return [folder for folder in newer if not is_whole(folder)]


def read_facts(folder: Path) -> dict[str, Any]:
    """Read ``trainer.json`` of a checkpoint."""
    return cast("dict[str, Any]", json.loads((folder / TRAINER).read_text(encoding="utf-8")))


def prune(root: Path, keep: int, keep_every: int | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints, and files that dead runs left half written.

    Keep what ``latest`` or ``best`` names, and every step that is a multiple of ``keep_every``.
    """
    named = {read_pointer(root / name) for name in (LATEST, BEST)}
    for old in list_folders(root)[:-keep]:
        step = step_of(old)
        lasting = keep_every is not None and step > 0 and step % keep_every == 0
        if old.name not in named and not lasting:
            shutil.rmtree(old)
    discard_parts(root)


def discard_parts(root: Path) -> None:
    """Delete half-written files and folders."""
    for part in root.glob(".tmp-*"):
        shutil.rmtree(part, ignore_errors=True)
    for part in root.glob("*.tmp"):
        part.unlink(missing_ok=True)
