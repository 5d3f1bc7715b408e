"""Rows with several labels: their groups of classes, and their columns in a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unicl_cli.contracts import NO_LABEL, ClassName, Drawn, LabelSets
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET, SHOWN


def groups_of(classes: Sequence[ClassName]) -> tuple[str, ...]:
    """Return the names of the groups of classes, in the order of their first classes."""
    return tuple(dict.fromkeys(item.group for item in classes))


def label_sets_of(classes: Sequence[ClassName], width: int) -> LabelSets:
    """Return the label sets of a mix with these classes, whose rows have at most ``width`` labels."""
    names = groups_of(classes)
    numbers = {name: number for number, name in enumerate(names)}
    return LabelSets(width, tuple(numbers[item.group] for item in classes), names)


def ancestors_of(classes: Sequence[ClassName]) -> tuple[tuple[int, ...], ...]:
    """Return for each class its own number and those of the classes above it, without a root that all would share."""
    numbers = {item.key: number for number, item in enumerate(classes)}
    found: dict[int, tuple[int, ...]] = {}
    roots = [number for number, item in enumerate(classes) if not item.parent]
    shared = set(roots) if len(roots) == 1 else set[int]()
    for first in range(len(classes)):
        path: list[int] = []
        number: int | None = first
        while number is not None and number not in found:
            path.append(number)
            number = numbers[classes[number].parent] if classes[number].parent else None
        above = () if number is None else found[number]
        for number in reversed(path):
            above = above if number in shared else (number, *above)
            found[number] = above
    return tuple(found[number] or (number,) for number in range(len(classes)))


def set_columns(
    drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, label_sets: LabelSets
) -> dict[str, Tensor]:
    """Return the columns LABEL_SET (b, S), SHOWN (b,) and KNOWN (b,) of a batch: with a ``partial``, an ``extra`` hook.

    S is the most labels of any row of the mix, so that it is the same on every rank.
    """
    del tokens, text_index
    labels = torch.full((len(drawn), label_sets.width), NO_LABEL)
    for number, row in enumerate(drawn):
        labels[number, : len(row.labels)] = torch.tensor(row.labels, dtype=torch.int64)
    shown, known = (torch.tensor(column) for column in zip(*((row.shown, row.known) for row in drawn), strict=True))
    return {LABEL_SET: labels, SHOWN: shown, KNOWN: known}
