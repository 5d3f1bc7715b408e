"""The check that the batches of a training have negatives."""

from collections.abc import Sequence
from typing import NamedTuple

from unicl_cli.build.data import TrainingData
from unicl_cli.data.mix import LABELS, Strand
from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import RowSets
from unicl_cli.recipe.schema import Recipe

TRIED_BATCHES = 20
"""Batches that are checked for negatives before a training."""


def check_negatives(recipe: Recipe, data: TrainingData) -> list[str]:
    """Return a warning about batches without a negative, whose rows the loss cannot distinguish.

    Raises UniclError if none of the first batches has a negative: the value of a contrastive loss is then always 0.
    """
    loss, size = recipe.loss.name, recipe.batch.size
    if loss == "ce":
        return []
    by_key = loss in ("unicl", "supcon")
    lone = count_lone_batches(data, TRIED_BATCHES, hides=loss == "unicl") if by_key and size > 1 else 0
    if size == 1:
        message = "batch.size 1: a batch of one row has nothing to tell apart"
        hint = "use a batch.size of 2 or more: a contrastive loss compares the rows of a batch"
    else:
        what = "one class only" if data.label_sets is None else "rows with the same labels only"
        message = f"batch.size {size}: {lone} of the first {TRIED_BATCHES} batches hold {what}, nothing to tell apart"
        hint = "use a larger batch.size, data.balance, or data.mix.by=sample"
        if data.label_sets is not None:
            hint = "use a larger batch.size, or data.mix.by=sample"
    if (size == 1 and (by_key or loss == "clip")) or lone == TRIED_BATCHES:
        raise UniclError(message, hint)
    return [message] if size == 1 or lone else []


class _Labels(NamedTuple):
    """The labels of one row, and the groups that it knows."""

    labels: tuple[int, ...]
    known: int


def count_lone_batches(data: TrainingData, count: int, *, hides: bool) -> int:
    """Return how many of the first ``count`` batches have only positives: rows of one class, or one row.

    Of rows with label sets: the same labels, or where the loss ``hides`` unknown groups, the same in each group.
    """
    sets = [strand.table.label_sets() for strand in data.mix.strands]
    groups = data.label_sets.groups if hides and data.label_sets is not None else ()

    def is_lone(step: int) -> bool:
        strands, rows = data.order.batch(step)
        places = set(zip(strands.tolist(), rows.tolist(), strict=True))
        found = {_labels_of(data.mix.strands[strand], sets[strand], row) for strand, row in places}
        if len(places) == 1 or any(not row.labels for row in found):
            return len(places) == 1
        return _has_no_negative(found, groups) if groups else len({row.labels for row in found}) == 1

    return sum(map(is_lone, range(count)))


def _labels_of(strand: Strand, sets: RowSets, row: int) -> _Labels:
    """Return the labels of a row of a strand, classes of the mix."""
    place = row if strand.rows is None else int(strand.rows[row])
    labels = sets.values[sets.ends[place] : sets.ends[place + 1]]
    known = sum(bit for number, bit in enumerate(strand.groups) if int(sets.known[place]) >> number & 1)
    return _Labels(tuple(strand.labels[labels].tolist()), known if strand.kind == LABELS else 0)


def _has_no_negative(rows: set[_Labels], groups: Sequence[int]) -> bool:
    """Return True if the rows that know a group have the same labels of it, group by group."""
    return all(
        len({frozenset(x for x in row.labels if groups[x] == group) for row in rows if row.known >> group & 1}) <= 1
        for group in set(groups)
    )
