"""Processes of the loader: how many a recipe and a machine get."""

import torch

from unicl_cli.core.machine import cores
from unicl_cli.recipe.schema import Recipe

WORKERS_PER_CORE = 4
"""Loader processes that a core can still serve."""


def worker_warnings(recipe: Recipe) -> list[str]:
    """Return a warning if the recipe names more loader processes than this machine can use."""
    asked, most = recipe.data.workers, WORKERS_PER_CORE * cores()
    if asked == "auto" or asked <= most:
        return []
    return [f"data.workers: {asked} are too many for {cores()} cores: {most} are started"]


def worker_count(recipe: Recipe, device: torch.device, local_world: int) -> int:
    """Return the loader's workers; ``auto``: one per core, up to 8, but none on a CPU, which trains on its cores."""
    if recipe.data.workers != "auto":
        return min(recipe.data.workers, WORKERS_PER_CORE * cores())
    return 0 if device.type == "cpu" else min(8, cores() // local_world)
