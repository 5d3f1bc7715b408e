"""The lines of a list on disk: the sets of their labels are in memory, each once."""

from collections.abc import Mapping
from typing import Any

from unicl_cli.data.sources.lists.record import LabelSet, Line
from unicl_cli.storage.spool import Spool

_FOUND = Line._fields.index("found")


class LineSpool(Spool[Line]):
    """Lines in a temporary file."""

    def __init__(self) -> None:
        self._packing = _Packing()  # not this object itself: the file is closed as soon as nobody needs it
        super().__init__(self._packing.pack, self._packing.unpack)

    def map_labels(self, texts: Mapping[str, str]) -> None:
        """Give the labels that ``texts`` names other texts."""
        self._packing.sets = [found.map_texts(texts) for found in self._packing.sets]


class _Packing:
    """Lines as plain values, with the number of their label set."""

    def __init__(self) -> None:
        self.sets: list[LabelSet] = []
        self._numbers: dict[LabelSet, int] = {}

    def pack(self, line: Line) -> tuple[Any, ...]:
        number = self._numbers.setdefault(line.found, len(self.sets))
        if number == len(self.sets):
            self.sets.append(line.found)
        return number, line[:_FOUND], line[_FOUND + 1 :]

    def unpack(self, packed: tuple[Any, ...]) -> Line:
        number, before, after = packed
        return Line._make((*before, self.sets[number], *after))
