"""Facts of a run directory: state, recipe, curve, validations, checkpoints, and the command that continues it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from unicl_cli.core.checkpoint_files import EMA, MODEL, has_sizes, list_folders
from unicl_cli.errors import UniclError
from unicl_cli.jobs import runs
from unicl_cli.jobs.inspect.checkpoint import read_header
from unicl_cli.recipe.text import as_mapping
from unicl_cli.runs import status
from unicl_cli.runs.folder import CHECKPOINTS, RESOLVED
from unicl_cli.runs.plugins import load_run_recipe

MAX_POINTS = 200
"""Largest number of curve points in the document."""


def inspect_run(run: Path) -> dict[str, Any]:
    """Return the document; damage is listed in ``notes``."""
    notes: list[str] = []
    state = status.summarize_run(run)
    if "reason" in state:
        notes.append(state["reason"])
    metrics = status.read_metrics(run)
    document: dict[str, Any] = {
        "schema": "unicl/inspect/1",
        "kind": "run",
        "path": str(run),
        **{key: value for key, value in state.items() if key not in ("run", "reason")},
        "updated": round(time.time() - state["age_s"], 1),
        "recipe": recipe_facts(run, notes),
        "last": metrics[-1] if metrics else None,
        "curve": thin_curve(metrics),
        "validations": status.read_validations(run),
        "checkpoints": list_checkpoints(run, notes),
        "model": model_facts(run, notes),
    }
    if state["state"] not in ("running", "done"):
        document["continue"] = runs.command_of(run)
    return document | {"notes": notes}


def recipe_facts(run: Path, notes: list[str]) -> dict[str, Any] | None:
    """Return the main settings of the run; None without a valid ``resolved.yaml``."""
    path = run / RESOLVED
    if not path.is_file():
        notes.append("resolved.yaml is missing: the run never started, or is damaged")
        return None
    try:
        recipe = load_run_recipe(run)
    except UniclError as error:
        notes.append(error.message if error.hint is None else f"{error.message}; {error.hint}")
        return None
    whole = as_mapping(recipe)
    parts = {key: _part_name(whole["model"].get(key)) for key in ("image", "text")}
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


def _part_name(part: Any) -> str | None:
    """Return ``timm resnet18`` for ``{name: timm, model: resnet18}``."""
    if not isinstance(part, dict):
        return part
    return " ".join(str(part[key]) for key in ("name", "model") if key in part)


def thin_curve(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return at most MAX_POINTS of the logged losses, the last one always."""
    rows = [row for row in metrics if row.get("loss") is not None]
    chosen = sorted({round(n * (len(rows) - 1) / (MAX_POINTS - 1)) for n in range(MAX_POINTS)}) if rows else []
    kept = ("step", "loss", "excess_loss", "lr", "logit_scale", "grad_norm")
    return [{key: rows[n][key] for key in kept if key in rows[n]} for n in chosen]


def list_checkpoints(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return each checkpoint, whole if its file sizes are right; inspecting one checkpoint also tests checksums."""
    found: list[dict[str, Any]] = []
    for folder in list_folders(run / CHECKPOINTS):
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        whole = has_sizes(folder)
        if not whole:
            notes.append(f"{folder}: is damaged or unfinished; run unicl inspect {folder} for details")
        found.append({"checkpoint": str(folder), "bytes": size, "whole": whole})
    return found


def model_facts(run: Path, notes: list[str]) -> dict[str, Any] | None:
    """Return the facts of the finished model in the run directory; None if there is none yet."""
    path = run / MODEL
    if not path.is_file():
        return None
    shapes = read_header(path)
    if shapes is None:
        notes.append(f"{path}: is damaged; use a checkpoint of the run instead")
        return None
    averaged = (run / EMA).is_file()
    return {"bytes": path.stat().st_size, "values": sum(count for count, _ in shapes.values()), "ema": averaged}
