"""The columns of a batch for rows with several labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unicl_cli.contracts import NO_LABEL, Drawn, LabelSets
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET, NAMED, SHOWN
from unicl_cli.core.image_cache import reads_no_images

MOST_NAMED = 8
"""Maximum number of classes that a caption names; one that names more counts as a list of words that names none."""


def pad_labels(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return lists of classes as int64 (b, width), NO_LABEL behind each."""
    found = torch.full((len(rows), width), NO_LABEL)
    for number, row in enumerate(rows):
        found[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def named_column(drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    """Return the column NAMED (b, MOST_NAMED) of a batch."""
    return {NAMED: pad_labels([row.named for row in drawn], MOST_NAMED)}


@reads_no_images
def set_columns(
    drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, label_sets: LabelSets
) -> dict[str, Tensor]:
    """Return the columns of label sets of a batch, int64; ``partial(set_columns, label_sets=…)`` is an ``extra`` hook.

    ``label_set`` (b, S): all labels of a row, NO_LABEL where it has fewer; S is the most of any row of the mix, so that
    it is the same on every rank. ``shown`` (b,): the class that its prompt names, NO_LABEL without. ``known`` (b,): bit
    g is set if the row is annotated for group g; 0 for a row of a caption alone, from which nothing is hidden.
    """
    del tokens, text_index
    labels = pad_labels([row.labels for row in drawn], label_sets.width)
    shown, known = (torch.tensor(column) for column in zip(*((row.shown, row.known) for row in drawn), strict=True))
    return {LABEL_SET: labels, SHOWN: shown, KNOWN: known}
