"""Rows of a split as they go into a corpus: picked from the source's own list in the planned order, never copied."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL, Row


class Adoption(NamedTuple):
    """What becomes of a source's row in a corpus: its key is prefixed; ``classes`` maps labels to the corpus's."""

    source: str
    kind: str
    classes: tuple[int, ...]

    def label(self, row: Row) -> int:
        """The corpus's number of the row's class; NO_LABEL for kinds that have none. The row's label is in range."""
        return NO_LABEL if self.kind != "labels" or row.label == NO_LABEL else self.classes[row.label]

    def key(self, row: Row) -> str:
        return f"{self.source}:{row.key}"

    def row(self, row: Row) -> Row:
        return Row(self.key(row), row.ref, () if self.kind == "images" else row.texts, self.label(row))


class Rows(Sequence[Row]):
    """``order`` numbers rows of ``raw``: 8 bytes a row beside the source's list; adopted when they are asked for."""

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
