"""Time that a training will take, from the speed of an earlier run of the same work on this machine."""

import socket
from pathlib import Path
from typing import Any

from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import as_mapping
from unicl_cli.runs.documents import Status, read_if_sound
from unicl_cli.runs.folder import RESOLVED, STATUS
from unicl_cli.runs.status import list_runs

SAME = ("loss", "batch", "precision", "parallel")
"""Sections of a recipe that set the work of a step, besides its model and data."""


def estimate_time(recipe: Recipe, folder: Path, world: int, samples: int) -> dict[str, Any]:
    """Return the seconds for ``samples`` and the run that they come from; nothing without a run like this one.

    That run was on this machine with ``world`` processes, and differs at most in what does not change a step's work.
    """
    for row in reversed(list_runs(folder) if folder.is_dir() else []):
        if row.get("img_s") and row.get("world") == world and is_alike(recipe, Path(row["run"])):
            return {"time_s": round(samples / row["img_s"]), "time_from": f"{row['run']}, {row['img_s']:,.0f} img/s"}
    return {}


def is_alike(recipe: Recipe, run: Path) -> bool:
    """Return whether a step of ``run`` did the same work on this machine."""
    status = read_if_sound(run / STATUS, Status)
    if status is None or status.host != socket.gethostname():
        return False
    try:
        other = load(str(run / RESOLVED))
    except UniclError:
        return False
    return work_of(recipe) == work_of(other)


def work_of(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe that set the work of a step; weights and learning rate do not."""
    whole = as_mapping(recipe)
    model = {key: value for key, value in whole["model"].items() if key not in ("init", "init_parts")}
    data = {key: whole["data"][key] for key in ("image_size", "views", "augment", "workers")}
    return {**{key: whole[key] for key in SAME}, "model": model, "data": data}
