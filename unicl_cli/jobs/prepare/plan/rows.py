"""Rows of a split in the order of a plan: views of the source's own list, never copied or sorted."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL, Row
from unicl_cli.core.sampler import Permutation

Numbers = NDArray[np.int64]
_CHUNK = 8192


class UnknownRanks(NamedTuple):
    """The ranks below each label, which are unknown, by the numbers of the corpus's classes.

    ``deeper``: a class above others -> the ranks below its own; ``parents``: a class -> the one above it; ``groups``:
    the group of each class.
    """

    deeper: Mapping[int, frozenset[str]]
    parents: Mapping[int, int]
    groups: tuple[str, ...]

    def of(self, labels: Sequence[int]) -> frozenset[str]:
        """Return the unknown ranks of a row: those below its labels; a label above another one adds nothing."""
        covered = {upper for label in labels for upper in self._above(label)} if len(labels) > 1 else set[int]()
        open_ranks = [self.deeper[label] for label in labels if label in self.deeper and label not in covered]
        return frozenset[str]().union(*open_ranks)

    def _above(self, label: int) -> Iterator[int]:
        upper = self.parents.get(label)
        while upper is not None:
            yield upper
            upper = self.parents.get(upper)


NO_UNKNOWN_RANKS = UnknownRanks({}, {}, ())


class RowMapping(NamedTuple):
    """How a source's rows map to a corpus: a key gets a prefix; ``classes`` maps a label to the corpus's.

    ``groups`` maps those of the source's classes to those of the corpus's: its rows are annotated for all of them
    unless they say so themselves, or are labelled above a leaf of a taxonomy (``unknown_ranks``).
    """

    source: str
    kind: str
    classes: tuple[int, ...]
    groups: Mapping[str, tuple[str, ...]] = MappingProxyType({"": ("",)})
    unknown_ranks: UnknownRanks = NO_UNKNOWN_RANKS

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
            return Row(self.key(row), row.ref, texts, NO_LABEL, media=row.media)
        labels = self.labels(row)
        known = self._known(labels, self.groups if row.known is None else row.known)
        return Row(self.key(row), row.ref, texts, labels[0] if len(labels) == 1 else NO_LABEL, labels, known, row.media)

    def _known(self, labels: Sequence[int], groups: Iterable[str]) -> tuple[str, ...]:
        """Return the groups a row is annotated for: those of its labels, and ``groups`` without unknown ranks."""
        unknown = self.unknown_ranks.of(labels)
        if unknown:
            unknown -= {self.unknown_ranks.groups[label] for label in labels}
        names = dict.fromkeys(name for group in groups for name in self.groups.get(group, (group,)))
        return tuple(name for name in names if name not in unknown)


class SplitRows:
    """The numbers of a split's rows among those of the source: the ascending ``listed`` ones, or all others of ``of``.

    Only the listed ones are in memory.
    """

    def __init__(self, listed: Numbers, of: int | None = None) -> None:
        self.listed, self.of = listed, of
        self._shifted = listed - np.arange(len(listed))

    def __len__(self) -> int:
        return len(self.listed) if self.of is None else self.of - len(self.listed)

    def __call__(self, places: Numbers) -> Numbers:
        """Return the numbers at these places in ascending order."""
        if self.of is None:
            return self.listed[places]
        return places + np.searchsorted(self._shifted, places, side="right")


class Rows(Sequence[Row]):
    """Rows of ``raw`` in the order of a plan, each changed when it is read.

    The order is a function of the place, without a table: that of ``split``, permuted by ``seed`` (None: as it is), and
    cut to ``limit`` rows.
    """

    def __init__(
        self, raw: Sequence[Row], split: SplitRows, mapping: RowMapping, *, seed: str | None, limit: int | None
    ) -> None:
        self.raw, self.split, self.mapping = raw, split, mapping
        self._length = len(split) if limit is None else min(limit, len(split))
        self._permute = Permutation(len(split), seed) if seed is not None and len(split) else None

    def __len__(self) -> int:
        return self._length

    def numbers(self, places: Numbers) -> Numbers:
        """Return the source's numbers of the rows at these places."""
        return self.split(self._permute(places) if self._permute else places)

    def by_source(self) -> Iterator[Row]:
        """Yield the rows in the source's order, unchanged."""
        if self._length < len(self.split):
            chosen = np.sort(self.numbers(np.arange(self._length)))
            yield from (self.raw[int(number)] for number in chosen)
            return
        for places in _chunks(self._length):
            yield from (self.raw[number] for number in self.split(places).tolist())

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return self.take(np.arange(*at.indices(self._length)))
        return self.take(np.array([range(self._length)[at]]))[0]

    def take(self, places: Numbers) -> list[Row]:
        """Return the rows at these places: much faster than one by one."""
        return [self.mapping.row(self.raw[number]) for number in self.numbers(places).tolist()]

    def __iter__(self) -> Iterator[Row]:
        return (row for places in _chunks(self._length) for row in self.take(places))


def _chunks(count: int) -> Iterator[Numbers]:
    """Yield all places below ``count``, some at a time."""
    for start in range(0, count, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, count))
