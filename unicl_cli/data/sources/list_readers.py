"""Readers of lists in CSV, TSV, JSONL and Parquet: cells by column, with the place of each line for messages."""

import csv
import hashlib
import json
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli.data.pictures import SUFFIXES, ImageError
from unicl_cli.errors import UniclError

END = "\x1a"
"""A line added after the last one of a CSV: if it ends up inside a cell, a quote was never closed."""


URL_FAULT = "the image is a URL, but only local files can be read"


class Line(NamedTuple):
    """One record: ``ref`` is a path, or ``row:N`` inside the file; with a ``fault`` (a reason) there is no ref."""

    place: str
    key: str
    ref: str
    texts: tuple[str, ...]
    label: str
    split: str
    fault: str


class Columns(NamedTuple):
    """Name of the column for each role; None if the list has none."""

    image: str | None
    caption: str | None
    label: str | None
    split: str | None
    key: str | None


class Reader(Protocol):
    """An open list: its columns, and its lines read from the given columns."""

    has_header: bool

    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        """The names that the file itself gives the numbers of a column, by column."""
        ...

    def lines(self, at: Columns, /) -> Iterator[Line]: ...


def open_reader(path: Path, header: bool | None, known: set[str]) -> Reader:  # noqa: FBT001
    """Return the reader for the path's suffix; ``known`` are the words that make a first line a header."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetReader(path)
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UniclError(f"{path}: encoded as UTF-16", "save it as UTF-8")
    if b"\r" in head and b"\n" not in head:
        raise UniclError(f"{path}: its lines end in CR alone", "save it with line endings LF or CRLF")
    return JsonReader(path) if suffix in (".jsonl", ".ndjson") else TextReader(path, header, known)


class TextReader:
    """CSV, or TSV; TSV has no quotes, so that a stray ``"`` is a character and swallows no lines."""

    class_names: Mapping[str, Sequence[str]] = {}

    def __init__(self, path: Path, header: bool | None, known: set[str]) -> None:  # noqa: FBT001
        self.path, self.tabs = path, path.suffix.lower() == ".tsv"
        self.delimiter = "\t" if self.tabs else _find_delimiter(path)
        first = next(self._records(), (0, []))[1]
        if not first:
            raise UniclError(f"{path}: the list is empty", "write a line for each image")
        self.has_header = any(cell.strip().lower() in known for cell in first) if header is None else header
        self.columns: tuple[str, ...] = self._names(first)

    def _names(self, first: list[str]) -> tuple[str, ...]:
        """Return the header, or else column numbers, with ``image`` for the column of paths."""
        if self.has_header:
            names = [cell.strip() for cell in first]  # of two equal names, the first column keeps it
            return tuple(name if name not in names[:at] else f"{name} ({at})" for at, name in enumerate(names))
        names = [str(number) for number in range(len(first))]
        images = [number for number, cell in enumerate(first) if looks_like_image(cell)]
        if len(images) == 1:
            names[images[0]] = "image"
        return tuple(names)

    def lines(self, at: Columns, /) -> Iterator[Line]:
        records = self._records()
        if self.has_header:
            next(records)
        for number, cells in records:
            place = f"line {number}"
            cells = self._fit_cells(cells, at)
            if len(cells) == len(self.columns):
                yield _build_line(place, dict(zip(self.columns, cells, strict=True)), at)
                continue
            yield Line(place, place, "", (), "", "", f"{len(self.columns)} cells expected, {len(cells)} found")

    def _fit_cells(self, cells: list[str], at: Columns) -> list[str]:
        """Drop blank cells beyond the last column, and join those of a caption in the last column."""
        count = len(self.columns)
        while len(cells) > count and not cells[-1].strip():
            cells.pop()
        if len(cells) > count and self.columns[-1] == at.caption:
            return [*cells[: count - 1], self.delimiter.join(cells[count - 1 :])]
        return cells

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="\n" if self.tabs else "") as file:
            if self.tabs:
                for number, line in enumerate(file, 1):
                    if text := line.rstrip("\r\n"):
                        yield number, text.split("\t")
                return
            yield from self._csv(file)

    def _csv(self, file: TextIO) -> Iterator[tuple[int, list[str]]]:
        records, start = csv.reader(chain(file, [END]), delimiter=self.delimiter), 1
        try:
            for cells in records:
                if cells and cells[-1].endswith(END):
                    if cells == [END]:
                        return
                    raise csv.Error("the list ends inside quotes")
                if cells:
                    yield start, cells
                start = records.line_num + 1
        except csv.Error as error:
            raise UniclError(
                f"{self.path}: line {start}: {error}", "close the quote that is opened in this line"
            ) from error


class JsonReader:
    """JSONL: one JSON object per line."""

    has_header = True
    class_names: Mapping[str, Sequence[str]] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        met: dict[str, None] = {}
        for _, record in self._records():
            if isinstance(record, dict):
                met.update(dict.fromkeys(record))
        self.columns: tuple[str, ...] = tuple(met)
        if not met:
            number, first = next(self._records(), (0, ""))
            fault = f"line {number}: {first or 'an object without keys'}" if number else "the list is empty"
            raise UniclError(f"{path}: {fault}", "write one JSON object per line")

    def lines(self, at: Columns, /) -> Iterator[Line]:
        for number, record in self._records():
            place = f"line {number}"
            if isinstance(record, dict):
                yield _build_line(place, record, at)
            else:
                yield Line(place, place, "", (), "", "", record)

    def _records(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, f"not JSON: {error}"
                    continue
                yield number, record if isinstance(record, dict) else "not a JSON object"


class ParquetReader:
    """Parquet, with images as bytes, as Hugging Face's struct of bytes and path, or as paths."""

    has_header = True

    def __init__(self, path: Path) -> None:
        try:
            self.file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise UniclError(f"{path}: not a readable Parquet file: {error}", "copy or write the file again") from error
        self.columns: tuple[str, ...] = tuple(self.file.schema_arrow.names)

    @property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        """The names of ClassLabel columns in Hugging Face's metadata."""
        metadata = (self.file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(metadata).get("info", {}).get("features", {})
        labels = {name: f for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
        return {name: feature["names"] for name, feature in labels.items()}

    def lines(self, at: Columns, /) -> Iterator[Line]:
        inside = at.image is not None and _holds_bytes(self.file.schema_arrow.field(at.image).type)
        columns = [name for name in at if name is not None and not (inside and name == at.image)]
        if not columns:
            yield from (
                Line(f"row {n}", f"{n:08d}", f"row:{n}", (), "", "", "") for n in range(self.file.metadata.num_rows)
            )
            return
        number = 0
        for batch in self.file.iter_batches(1024, columns=columns):
            for record in batch.to_pylist():
                if inside:
                    record[at.image] = f"row:{number}"
                line = _build_line(f"row {number}", record, at)
                yield line._replace(key=f"{number:08d}") if inside and at.key is None else line
                number += 1


class ParquetImages:
    """Images inside a Parquet file by row number, with a cache of the latest row groups."""

    def __init__(self, path: Path, column: str) -> None:
        self.file = pq.ParquetFile(path, memory_map=True)
        self.column = column
        metadata = self.file.metadata
        self.ends: list[int] = []
        for group in range(metadata.num_row_groups):
            self.ends.append((self.ends[-1] if self.ends else 0) + metadata.row_group(group).num_rows)
        self._group = lru_cache(maxsize=16)(self._read_group)
        self._lock = threading.Lock()  # a ParquetFile is not thread-safe

    def read(self, row: int) -> bytes:
        """Return the bytes of the image in a row. ImageError if the cell is empty."""
        group = bisect_right(self.ends, row)
        with self._lock:
            cell = self._group(group)[row - (self.ends[group - 1] if group else 0)].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not data:
            raise ImageError("empty", f"row {row}")
        return data

    def digests(self) -> list[str]:
        """Return a digest of each row's image, by one pass over the column; an empty cell has its row number."""
        found: list[str] = []
        for batch in self.file.iter_batches(64, columns=[self.column]):
            for cell in batch.column(0):
                value = cell.as_py()
                data = value.get("bytes") if isinstance(value, dict) else value
                found.append(hashlib.sha256(data).hexdigest() if data else f"row:{len(found)}")
        return found

    def _read_group(self, group: int) -> Any:
        return self.file.read_row_group(group, columns=[self.column]).column(self.column)


def _holds_bytes(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)


def _build_line(place: str, record: dict[str, Any], at: Columns) -> Line:
    ref = _cell(record, at.image).strip()
    fault = "" if ref else f"no {at.image}"
    if odd := next((c for c in at if c is not None and not _is_plain(record.get(c), listed=c == at.caption)), None):
        fault = f"{odd} is not text"
    if ref.startswith(("http://", "https://")):
        fault = URL_FAULT
    return Line(
        place,
        _cell(record, at.key) or ref or place,
        "" if fault else ref,
        _texts(record.get(at.caption) if at.caption else None),
        _cell(record, at.label).strip(),
        _cell(record, at.split).strip(),
        fault,
    )


def _is_plain(value: Any, *, listed: bool) -> bool:
    if listed and isinstance(value, list):
        return all(_is_plain(item, listed=False) for item in value)
    return not isinstance(value, dict | list)


def _cell(record: dict[str, Any], column: str | None) -> str:
    return _text(None if column is None else record.get(column))


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for v in values if (text := _text(v)).strip())


def _find_delimiter(path: Path) -> str:
    """Return the separator of a CSV: a comma, unless its first line has only semicolons, tabs or bars."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline(1 << 16)
    others = max(";\t|", key=first.count)
    return others if "," not in first and others in first else ","


def looks_like_image(cell: str) -> bool:
    """Return whether a cell is a URL, or ends as image files do."""
    return cell.rpartition(".")[2].lower() in SUFFIXES or cell.startswith(("http://", "https://"))
