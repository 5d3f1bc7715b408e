"""The reader of lists in Parquet, with images as bytes, as Hugging Face's struct of bytes and path, or as paths."""

import hashlib
import json
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
from unicl_cli.data.sources.lists.record import Record, StoredImage
from unicl_cli.errors import UniclError


class ParquetReader:
    """Records of a Parquet file; a cell of bytes is not read here, but stands for the image in its row."""

    has_header = True
    delimiter: str | None = None
    hint = "check the columns: ?image=COLUMN&caption=COLUMN"

    def __init__(self, path: Path) -> None:
        try:
            self.file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise UniclError(f"{path}: not a readable Parquet file: {error}", "copy or write the file again") from error
        self.columns: tuple[str, ...] = tuple(self.file.schema_arrow.names)
        if twice := [name for name, times in Counter(self.columns).items() if times > 1]:
            raise UniclError(f"{path}: two columns named '{twice[0]}'", "rename one of them")
        self.stored = frozenset(name for name in self.columns if _holds_bytes(self.file.schema_arrow.field(name).type))

    @property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        """The names of ClassLabel columns in Hugging Face's metadata."""
        metadata = (self.file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(metadata).get("info", {}).get("features", {})
        labels = {name: f for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
        return {name: feature["names"] for name, feature in labels.items()}

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        stored = [name for name in columns if name in self.stored]
        read = [name for name in columns if name not in self.stored]
        for number, cells in enumerate(self._cells(read)):
            yield Record(f"row {number}", {**cells, **dict.fromkeys(stored, StoredImage(number))})

    def _cells(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        if not columns:
            yield from ({} for _ in range(self.file.metadata.num_rows))
            return
        for batch in self.file.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()


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

    def read(self, row: int) -> bytes | str:
        """Return the bytes of the image in a row, or its path if it has no bytes. ImageError for an empty cell."""
        group = bisect_right(self.ends, row)
        with self._lock:
            cell = self._group(group)[row - (self.ends[group - 1] if group else 0)].as_py()
        data = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
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
    """Return whether cells are bytes in any of Arrow's forms, or Hugging Face's struct around them."""
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return any(
        holds(kind)
        for holds in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )
