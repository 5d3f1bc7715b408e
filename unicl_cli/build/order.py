"""Recipe to the order of the rows."""

from collections.abc import Sequence
from typing import Any

from unicl_cli.core.sampler import Order
from unicl_cli.data.class_order import ClassRows, order_by_class
from unicl_cli.data.mix import Strand, order_of
from unicl_cli.errors import UniclError
from unicl_cli.recipe.schema import Recipe


def build_order(recipe: Recipe, strands: Sequence[Strand]) -> Order:
    """Return the order of the rows. UniclError if it cannot fill batches of `batch.size`."""
    data, asked = recipe.data, None
    if data.rows_per_class is not None:
        asked = ClassRows(data.rows_per_class, data.classes_per_batch)
    elif data.classes_per_batch is not None:
        raise UniclError("data.classes_per_batch: needs data.rows_per_class", "set both, or data.rows_per_class alone")
    if asked and data.balance:
        raise UniclError(
            "data.balance: data.rows_per_class already draws all classes equally often", "set data.balance=0"
        )
    place: dict[str, Any] = {
        "labels": data.mix.labels,
        "by": data.mix.by,
        "batch_size": recipe.batch.size,
        "seed": recipe.seed,
    }
    try:
        if asked:
            return order_by_class(strands, asked, **place)
        return order_of(strands, **place, balance=data.balance)
    except ValueError as error:
        raise UniclError(f"batch.size: {error}", "use a larger batch.size or fewer corpora") from error
