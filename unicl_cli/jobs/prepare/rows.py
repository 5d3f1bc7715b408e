"""Rows of a split in the order of a plan: views of the source's own list, never copied."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL, Row


class Adoption(NamedTuple):
    """The change of a source's row for a corpus: its key gets a prefix; ``classes`` maps its label to the corpus's.

    ``groups`` are those of the source's classes, for which its rows are annotated unless they say so themselves.
    """

    source: str
    kind: str
    classes: tuple[int, ...]
    groups: tuple[str, ...] = ("",)

    def label(self, row: Row) -> int:
        """Return the corpus's number of the row's class (a label in range); NO_LABEL for kinds without labels."""
        return NO_LABEL if self.kind != "labels" or row.label == NO_LABEL else self.classes[row.label]

    def labels(self, row: Row) -> tuple[int, ...]:
        """Return the corpus's numbers of all classes of the row, ascending."""
        if not row.labels:
            label = self.label(row)
            return () if label == NO_LABEL else (label,)
        return tuple(sorted({self.classes[label] for label in row.labels})) if self.kind == "labels" else ()

    def key(self, row: Row) -> str:
        return f"{self.source}:{row.key}"

    def row(self, row: Row) -> Row:
        texts = () if self.kind == "images" else row.texts
        if self.kind != "labels" or not row.is_labelled():
            return Row(self.key(row), row.ref, texts, NO_LABEL)
        labels = self.labels(row)
        known = self.groups if row.known is None else row.known
        return Row(self.key(row), row.ref, texts, labels[0] if len(labels) == 1 else NO_LABEL, labels, known)


class Rows(Sequence[Row]):
    """The rows of ``raw`` in ``order``, each changed when it is read: 8 bytes per row beside the source's list."""

    def __init__(self, raw: Sequence[Row], order: NDArray[np.int64], adoption: Adoption) -> None:
        self.raw, self.order, self.adoption = raw, order, adoption

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [self.adoption.row(self.raw[number]) for number in self.order[at].tolist()]
        return self.adoption.row(self.raw[int(self.order[at])])

    def __iter__(self) -> Iterator[Row]:
        return (self.adoption.row(self.raw[int(number)]) for number in self.order)
