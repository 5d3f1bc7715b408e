"""A run directory in one document: state, recipe, curve, validations, checkpoints, and the command that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unicl_cli.core.checkpoint_files import EMA, MODEL, TRAINER, list_folders
from unicl_cli.errors import UniclError
from unicl_cli.jobs import runs
from unicl_cli.jobs.inspect.checkpoint import header
from unicl_cli.recipe.load import load
from unicl_cli.recipe.text import as_mapping
from unicl_cli.runs import status
from unicl_cli.runs.folder import CHECKPOINTS, METRICS, RESOLVED

POINTS = 200
"""Of the curve that is kept in the document."""


def inspect_run(run: Path) -> dict[str, Any]:
    """The document; what is damaged is said in ``notes``."""
    notes: list[str] = []
    state = status.summarize_run(run)
    if "reason" in state:
        notes.append(state["reason"])
    metrics = status.read_lines(run / METRICS)
    document: dict[str, Any] = {
        "schema": "unicl/inspect/1",
        "kind": "run",
        "path": str(run),
        **{key: value for key, value in state.items() if key not in ("run", "reason")},
        "recipe": recipe_facts(run, notes),
        "last": metrics[-1] if metrics else None,
        "curve": curve(metrics),
        "validations": status.read_validations(run),
        "checkpoints": checkpoints(run, notes),
        "model": model_facts(run, notes),
    }
    if state["state"] not in ("running", "done"):
        document["continue"] = runs.command_of(run)
    return document | {"notes": notes}


def recipe_facts(run: Path, notes: list[str]) -> dict[str, Any] | None:
    """What decides most of a run; None without a sound ``resolved.yaml``."""
    path = run / RESOLVED
    if not path.is_file():
        notes.append("resolved.yaml is missing: the run was not begun, or is damaged")
        return None
    try:
        recipe = load(str(path))
    except UniclError as error:
        notes.append(error.message)
        return None
    whole = as_mapping(recipe)
    parts = {key: _name(whole["model"].get(key)) for key in ("image", "text")}
    return {
        "name": recipe.name,
        "corpora": [item.corpus for item in recipe.data.train],
        "image_size": recipe.data.image_size,
        **parts,
        "loss": recipe.loss.name,
        "optimizer": recipe.optim.name,
        "lr": recipe.optim.lr,
        "batch_size": recipe.batch.size,
        "length": {key: whole[key] for key in ("steps", "epochs", "samples") if whole.get(key) is not None},
        "seed": recipe.seed,
    }


def _name(part: Any) -> str | None:
    """``timm: resnet18`` of ``{name: timm, model: resnet18}``."""
    if not isinstance(part, dict):
        return part
    return " ".join(str(part[key]) for key in ("name", "model") if key in part)


def curve(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses over steps, at most POINTS, the last one always."""
    rows = [row for row in metrics if isinstance(row.get("loss"), int | float) and "step" in row]
    chosen = sorted({round(n * (len(rows) - 1) / (POINTS - 1)) for n in range(POINTS)}) if rows else []
    kept = ("step", "loss", "excess_loss", "lr", "logit_scale", "grad_norm")
    return [{key: rows[n][key] for key in kept if key in rows[n]} for n in chosen]


def checkpoints(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Each with its size; whole by the sizes that its ``trainer.json`` names (`inspect` of one tests the checksums)."""
    found: list[dict[str, Any]] = []
    for folder in list_folders(run / CHECKPOINTS):
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        whole = sized(folder)
        if not whole:
            notes.append(f"{folder}: is damaged or unfinished; see unicl inspect {folder}")
        found.append({"checkpoint": str(folder), "bytes": size, "whole": whole})
    return found


def sized(folder: Path) -> bool:
    try:
        files = json.loads((folder / TRAINER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, (size, _) in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def model_facts(run: Path, notes: list[str]) -> dict[str, Any] | None:
    """The finished model at the top of the run; None where there is none yet."""
    path = run / MODEL
    if not path.is_file():
        return None
    shapes = header(path)
    if shapes is None:
        notes.append(f"{path}: is damaged; a checkpoint may still be whole")
        return None
    averaged = (run / EMA).is_file()
    return {"bytes": path.stat().st_size, "values": sum(count for count, _ in shapes.values()), "ema": averaged}
