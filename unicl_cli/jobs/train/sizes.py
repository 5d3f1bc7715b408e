"""The numbers of a training that follow from its recipe, its data and the number of processes."""

from typing import NamedTuple

from unicl_cli.build.data import TrainingData, total_steps
from unicl_cli.recipe.schema import Recipe


class Sizes(NamedTuple):
    """The number of processes, and what each of them takes."""

    world: int
    """Processes."""
    local: int
    """Rows of each global batch that one process takes."""
    steps: int
    """Updates of the whole training."""


def sizes_of(recipe: Recipe, data: TrainingData, world: int) -> Sizes:
    """Return the sizes of a recipe's training on ``world`` processes."""
    return Sizes(world, recipe.batch.size // world, total_steps(recipe, data))


def chunk_count(local: int, rows: int) -> int:
    """Return the number of parts in which ``local`` rows are encoded, at most ``rows`` at once."""
    return -(-local // rows)


def is_sharded(recipe: Recipe, world: int) -> bool:
    """Return True if FSDP2 shards the weights over the processes."""
    return recipe.parallel.strategy == "fsdp2" and world > 1
