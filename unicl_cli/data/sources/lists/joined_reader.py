"""The reader of a subset of YFCC100M: a list of photo identifiers, joined with the metadata of the 100 million."""

import bz2
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, cast
from urllib.parse import unquote_plus

import numpy as np
from numpy.typing import NDArray

from unicl_cli.data.sources.lists.record import Record
from unicl_cli.data.sources.text_file import MAX_LINE, UTF8
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import open_regular

_CHUNK = 50_000
"""Lines of metadata that are compared with the list at a time."""


class _Fields(NamedTuple):
    """The numbers of the columns of the metadata that are used."""

    photo: int
    title: int
    description: int
    url: int
    marker: int


FIELDS = {25: _Fields(1, 8, 9, 16, 24), 23: _Fields(0, 6, 7, 14, 22)}
"""Columns of the metadata by their number: with the line number and the hash of each photo, or without."""
_VIDEO = b"1"


class JoinedReader:
    """Records of the photos that the list names, in the order of the metadata, their quoting as in URLs undone.

    The list has a line `line number, photo identifier, hash` for each photo, as OpenAI's does, or only the identifier.
    The metadata is read through each time, as it is or packed by bzip2; the identifiers take 8 bytes each.
    """

    has_header = True
    delimiter: str | None = None
    repeated: Mapping[str, Sequence[int]] = {}
    hint = "use the metadata file of YFCC100M that the list was made from"
    columns = ("photoid", "title", "description", "url")

    def __init__(self, path: Path, metadata: Path) -> None:
        self.path, self.metadata = path, metadata

    def class_names(self, _column: str, /) -> Sequence[str]:
        return ()

    def class_groups(self, _key: str, /) -> Mapping[str, str]:
        return {}

    @cached_property
    def photos(self) -> NDArray[np.int64]:
        """The identifiers of the list, ascending. UniclError for a line without one, or for a photo listed twice."""
        try:
            with _open(self.path) as file:
                found = np.fromiter((self._photo(number, line) for number, line in enumerate(file, 1)), np.int64)
        except (OSError, EOFError) as error:
            raise UniclError(f"{self.path}: cannot be read: {error}", "copy or download it again") from error
        found.sort()
        twice = found[1:][found[1:] == found[:-1]]
        if len(twice) or not len(found):
            what = f"photo {twice[0]} is listed twice" if len(twice) else "the list is empty"
            raise UniclError(f"{self.path}: {what}", "use the list as it was published")
        return found

    def _photo(self, number: int, line: bytes) -> int:
        cells = line.split(b"\t")
        cell = cells[1 if len(cells) > 1 else 0].strip()
        if not cell.isdigit() or len(cell) > 18:
            raise UniclError(
                f"{self.path}: line {number:,} has no photo identifier in column {min(len(cells), 2)}",
                "write lines with the line number, the photo identifier and the hash, between tabs",
            )
        return int(cell)

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        """Yield a record per photo of the list, last those that the metadata lacks. UniclError for other metadata."""
        met = np.zeros(len(self.photos), np.bool_)
        try:
            with _open(self.metadata) as file:
                number = 0
                while lines := list(islice(file, _CHUNK)):
                    yield from self._matching(lines, number, met)
                    number += len(lines)
        except (OSError, EOFError, ValueError) as error:
            raise UniclError(f"{self.metadata}: cannot be read: {error}", "copy or download it again") from error
        for photo in self.photos[~met]:
            yield Record(f"photo {photo}", {}, f"photo {photo} is not in {self.metadata.name}")

    def _matching(self, lines: list[bytes], before: int, met: NDArray[np.bool_]) -> Iterator[Record]:
        """Yield the records of those lines whose photo is in the list and was not met before."""
        rows = [line.rstrip(b"\r\n").split(b"\t") for line in lines]
        if not before and (len(rows[0]) not in FIELDS or not rows[0][FIELDS[len(rows[0])].photo].isdigit()):
            raise UniclError(
                f"{self.metadata}: line 1 has {len(rows[0])} columns; YFCC100M's metadata has 25 or 23", self.hint
            )
        ids = np.array([_identifier(row) for row in rows], np.int64)
        at = np.searchsorted(self.photos, ids)
        at[at == len(self.photos)] = 0
        for number in np.flatnonzero(self.photos[at] == ids).tolist():
            if not met[at[number]]:
                met[at[number]] = True
                yield _record(before + number + 1, rows[number])


def _identifier(row: Sequence[bytes]) -> int:
    """Return the photo of a line of metadata; -1 for a line that has none."""
    fields = FIELDS.get(len(row))
    cell = row[fields.photo] if fields else b""
    return int(cell) if cell.isdigit() and len(cell) <= 18 else -1


def _record(number: int, row: Sequence[bytes]) -> Record:
    fields = FIELDS[len(row)]
    place = f"line {number}"
    if row[fields.marker].strip() == _VIDEO:
        return Record(place, {}, "a video")
    if sum(map(len, row)) > MAX_LINE:
        return Record(place, {}, "the line is too long")
    texts = {name: row[getattr(fields, name)].decode(UTF8, "replace") for name in ("title", "description", "url")}
    quoted = {name: unquote_plus(texts[name]) for name in ("title", "description")}
    return Record(place, {"photoid": row[fields.photo].decode(), **quoted, "url": texts["url"].strip()})


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".bz2":
        return cast("IO[bytes]", bz2.open(path))
    return open_regular(path)
