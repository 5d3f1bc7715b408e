"""The reader of lists in Parquet, with images as bytes, as Hugging Face's struct of bytes and path, or as paths."""

import hashlib
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli.data.pictures import ImageError
from unicl_cli.data.sources.lists.json_values import parse_value
from unicl_cli.data.sources.lists.record import Record, StoredImage, check_columns
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import open_regular
from unicl_cli.storage.spool import Spool

_NO_VALUE = (pa.ArrowException, ValueError, OverflowError)
"""Errors of pyarrow for a value that Python cannot hold: a year above 9999, an unknown time zone, bytes not UTF-8."""


class ParquetReader:
    """Records of a Parquet file; a cell of bytes is not read here, but stands for the image in its row."""

    has_header = True
    delimiter: str | None = None
    repeated: Mapping[str, Sequence[int]] = {}
    hint = "check the columns: ?image=COLUMN&caption=COLUMN"

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, open_parquet(path)
        rows, size = self.file.metadata.num_rows, path.stat().st_size
        if rows > size:
            raise UniclError(f"{path}: damaged: {rows:,} rows in {size:,} bytes", "copy or write the file again")
        self.columns: tuple[str, ...] = tuple(self.file.schema_arrow.names)
        check_columns(path, self.columns)
        if twice := [name for name, times in Counter(self.columns).items() if times > 1]:
            raise UniclError(f"{path}: two columns named '{twice[0]}'", "rename one of them")
        self.stored = frozenset(name for name in self.columns if _holds_bytes(self.file.schema_arrow.field(name).type))

    def class_names(self, column: str, /) -> Sequence[str]:
        """Return the names of a ClassLabel column in Hugging Face's metadata. UniclError if they are damaged."""
        metadata = (self.file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            return _names_in(parse_value(metadata), column)
        except ValueError as error:
            raise UniclError(
                f"{self.path}: damaged metadata of Hugging Face: {error}",
                "name the classes with ?classes=FILE, or write the file again",
            ) from error

    def class_groups(self, _key: str, /) -> Mapping[str, str]:
        return {}

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        stored = [name for name in columns if name in self.stored]
        read = [name for name in columns if name not in self.stored]
        for number, (cells, fault) in enumerate(self._cells(read)):
            yield Record(f"row {number}", {**cells, **dict.fromkeys(stored, StoredImage(number))}, fault)

    def _cells(self, columns: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the cells of each row, and the fault of a cell that Python has no value for."""
        if not columns:
            yield from (({}, "") for _ in range(self.file.metadata.num_rows))
            return
        for batch in iter_batches(self.path, self.file, 1024, columns):
            try:
                rows = batch.to_pylist()
            except _NO_VALUE:
                yield from (_read_cells(batch, at) for at in range(batch.num_rows))
            else:
                yield from ((cells, "") for cells in rows)


def open_parquet(path: Path, *, memory_map: bool = False) -> pq.ParquetFile:
    """Open a Parquet file. UniclError if it is damaged, encrypted or something else."""
    try:
        open_regular(path).close()
        return pq.ParquetFile(
            path.absolute(), memory_map=memory_map
        )  # pyarrow takes a leading ~ for the home directory
    except (pa.ArrowException, OSError) as error:
        what = " ".join(str(error).split())
        raise UniclError(f"{path}: not a readable Parquet file: {what}", "copy or write the file again") from error


def iter_batches(path: Path, file: pq.ParquetFile, size: int, columns: list[str]) -> Iterator[Any]:
    """Yield batches of at most ``size`` rows. UniclError if the file is damaged."""
    try:
        yield from file.iter_batches(size, columns=columns)
    except (pa.ArrowException, OSError) as error:
        what = " ".join(str(error).split())
        raise UniclError(f"{path}: damaged: {what}", "copy or write the file again") from error


def _read_cells(batch: Any, at: int) -> tuple[dict[str, Any], str]:
    cells: dict[str, Any] = {}
    fault = ""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            cells[name] = column[at].as_py()
        except _NO_VALUE as error:
            cells[name], fault = None, fault or f"{name} cannot be read: {error}"
    return cells, fault


def _names_in(found: Any, column: str) -> list[str]:
    """Return the names of a ClassLabel; none if the column is another feature. ValueError for an odd tree."""
    for key in ("info", "features", column):
        if not isinstance(found, dict):
            raise ValueError(f"no object with the key '{key}'")
        found = found.get(key, {})
    while isinstance(found, dict) and isinstance(found.get("feature"), dict):  # a list of labels
        found = found["feature"]
    if not isinstance(found, dict) or found.get("_type") != "ClassLabel" or found.get("names") is None:
        return []
    names = found["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"the names of '{column}' are not strings")
    return names


class ParquetImages:
    """Images inside a Parquet file by row number, with a cache of the latest row groups."""

    def __init__(self, path: Path, column: str, groups: int = 16) -> None:
        self.path, self.column = path, column
        self.file = open_parquet(path, memory_map=True)
        metadata = self.file.metadata
        self.ends: list[int] = []
        for group in range(metadata.num_row_groups):
            self.ends.append((self.ends[-1] if self.ends else 0) + metadata.row_group(group).num_rows)
        self._group = lru_cache(maxsize=groups)(self._read_group)
        self._lock = threading.Lock()  # a ParquetFile is not thread-safe

    def read(self, row: int) -> bytes | str:
        """Return the bytes of the image in a row, or its path if it has no bytes. ImageError for an empty cell."""
        group = bisect_right(self.ends, row)
        with self._lock:
            cell = self._group(group)[row - (self.ends[group - 1] if group else 0)].as_py()
        data = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
        if not data:
            raise ImageError("empty", f"row {row}")
        return data

    def digests(self) -> Sequence[str]:
        """Return a digest of each row's image, by one pass over the column; an empty cell has its row number."""
        found = Spool[str](str, str)
        for batch in iter_batches(self.path, self.file, 64, [self.column]):
            for cell in batch.column(0):
                value = cell.as_py()
                data = value.get("bytes") if isinstance(value, dict) else value
                found.append(hashlib.sha256(data).hexdigest() if data else f"row:{len(found)}")
        return found

    def _read_group(self, group: int) -> Any:
        return self.file.read_row_group(group, columns=[self.column]).column(self.column)


def _holds_bytes(kind: Any) -> bool:
    """Return whether cells are bytes in any of Arrow's forms, or Hugging Face's struct around them."""
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        fields = [kind.field(at) for at in range(kind.num_fields)]
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in fields)
    return any(
        holds(kind)
        for holds in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )
