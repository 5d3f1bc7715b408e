"""Sources of the data sets in the catalogue: their lists as one, with files and counts compared with the facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicl_cli.contracts import NO_LABEL, ClassName, DatasetSource, Row
from unicl_cli.data.pictures import Extent
from unicl_cli.data.sources.catalogue import ALL, Dataset
from unicl_cli.data.sources.data_dirs import check_md5
from unicl_cli.data.sources.lists.record import BAD_LINE
from unicl_cli.data.sources.splits import ORDER
from unicl_cli.errors import Remark
from unicl_cli.formats import count_of
from unicl_cli.storage.derived import Derived

if TYPE_CHECKING:
    from unicl_cli.data.sources.table import Table

MOST_HASHED = 1_000_000_000
"""The largest list in bytes whose md5 is compared unasked, which takes some seconds."""
_TOLERANCE = 0.01
"""The share by which a count may differ from a rounded one."""


class KnownSource:
    """A source as it is, with notes on numbers that are not the published ones, and on what to know of the data.

    The md5 of ``files`` is compared when rows are asked for, which workers do not do.
    """

    def __init__(self, source: DatasetSource, dataset: Dataset, files: Sequence[Path] = ()) -> None:
        self._source, self._dataset, self._files = source, dataset, files
        self._counted: dict[str, int] = {}

    @property
    def splits(self) -> Sequence[str]:
        return self._source.splits

    @property
    def classes(self) -> Sequence[ClassName]:
        return self._source.classes

    @property
    def templates(self) -> Sequence[str] | str:
        return self._dataset.templates or self._source.templates

    def rows(self, split: str) -> Sequence[Row]:
        self._check_md5()
        rows = self._source.rows(split)
        self._counted[split] = len(rows)
        return rows

    def read(self, row: Row) -> Mapping[str, bytes]:
        return self._source.read(row)

    @property
    def notes(self) -> list[str]:
        """The source's notes, and those on the data set; complete once all rows were asked for."""
        return [
            *getattr(self._source, "notes", ()),
            *self._describe_counts(),
            *self._describe_lacks(),
            *self._describe_caution(),
        ]

    def _check_md5(self) -> None:
        """Compare each file once. UniclError for another md5 than the published one."""
        for file in self._files:
            expected = self._dataset.md5_of(file.name)
            if expected and file.stat().st_size <= MOST_HASHED:
                check_md5(file, expected, f"{self._dataset.name}?verify=false")
        self._files = ()

    def _describe_counts(self) -> Iterator[str]:
        counted = {**self._counted, ALL: sum(self._counted.values())}
        for split, expected in self._dataset.rows.items():
            rows = counted.get(split)
            if rows is None or abs(rows - expected) <= (_TOLERANCE * expected if self._dataset.rounded else 0):
                continue
            place = "" if split == ALL else f" {split}"
            about = "about " if self._dataset.rounded else ""
            yield _describe_count(f"{self._dataset.name}{place}", count_of(rows, "row"), f"{about}{expected:,}")
        classes = len(self._source.classes)
        if classes and self._dataset.classes not in (0, classes):
            yield _describe_count(self._dataset.name, count_of(classes, "class"), f"{self._dataset.classes:,}")

    def _describe_lacks(self) -> Iterator[str]:
        """Yield a note per list of the data set that is not there, unless one part was asked for."""
        if isinstance(self._source, JoinedLists) and not self._source.is_cut:
            for part in self._dataset.layouts[0]:
                if part.name not in self._source.parts:
                    yield f"{self._dataset.name}: has no {part.name} rows: {part.list[0]} is not there"

    def _describe_caution(self) -> Iterator[str]:
        if self._dataset.caution:
            yield Remark(f"{self._dataset.name}: {self._dataset.caution}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def _describe_count(place: str, found: str, expected: str) -> str:
    return f"{place}: has {found}; the published data set has {expected}"


class JoinedLists:
    """Lists of which each has a split of a data set; a row's key and ``ref`` begin with its split.

    ``is_cut``: the user asked for one of them.
    """

    templates = "clip80"

    def __init__(self, parts: Mapping[str, Table], *, is_cut: bool) -> None:
        self.is_cut = is_cut
        self.parts = {split: parts[split] for split in sorted(parts, key=ORDER.index)}

    @property
    def splits(self) -> Sequence[str]:
        return list(self.parts)

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The classes of all lists, each once, in the order in which they are met."""
        return tuple(self._numbers)

    @cached_property
    def _numbers(self) -> dict[ClassName, int]:
        met = dict.fromkeys(c for part in self.parts.values() for c in part.classes)
        return {c: number for number, c in enumerate(met)}

    @property
    def notes(self) -> list[str]:
        return [note for part in self.parts.values() for note in part.notes]

    def rows(self, split: str) -> Sequence[Row]:
        numbers = self._numbers
        own = [numbers[c] for c in self.parts[split].classes]
        return ListedRows(self.parts[split].rows(split), split, own)

    def read(self, row: Row) -> dict[str, bytes]:
        part, own = self._own(row)
        return part.read(own)

    def url(self, row: Row) -> str | None:
        part, own = self._own(row)
        return part.url(own)

    def extent(self, row: Row) -> Extent | None:
        part, own = self._own(row)
        return part.extent(own)

    def stamp(self, row: Row) -> int:
        part, own = self._own(row)
        return part.stamp(own)

    def _own(self, row: Row) -> tuple[Table, Row]:
        """Return the list of a row, and the row as the list has it."""
        if row.ref.startswith(BAD_LINE):
            return next(iter(self.parts.values())), row
        split, _, ref = row.ref.partition("/")
        return self.parts[split], row._replace(ref=ref)


class ListedRows(Derived[Row]):
    """The rows of one list, each changed when it is read; ``classes`` are the numbers of the list's own classes."""

    def __init__(self, raw: Sequence[Row], split: str, classes: Sequence[int]) -> None:
        self.raw, self.split, self.numbers = raw, split, classes

    def __len__(self) -> int:
        return len(self.raw)

    def derive(self, at: int) -> Row:
        return self._adopt(self.raw[at])

    def __iter__(self) -> Iterator[Row]:
        return map(self._adopt, self.raw)  # a list on the disk is read faster in order

    def _adopt(self, row: Row) -> Row:
        ref = row.ref if row.ref.startswith(BAD_LINE) else f"{self.split}/{row.ref}"
        label = row.label if row.label == NO_LABEL else self.numbers[row.label]
        labels = tuple(self.numbers[number] for number in row.labels)
        return row._replace(key=f"{self.split}/{row.key}", ref=ref, label=label, labels=labels)
