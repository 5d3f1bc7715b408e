"""Records of integers sorted on disk, of which one bucket at a time is in memory."""

import errno
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unicl_cli.storage.spool import full_disk_error

Words = NDArray[np.uint64]
HASHES = 1 << 64
"""The number of 64-bit hashes."""
BUCKETS = 64
CHUNK = 1 << 14
"""Records that are sorted into buckets at once."""
_FEW = 512
"""Records that are Python's integers at once."""


class Buckets:
    """Records of unsigned 64-bit integers that are added first, then read in ascending order as often as wanted.

    A bucket has the records with one range of first columns, which are below ``most``. If these are spread evenly, as
    hashes are, it has one in 64 records. The file has no name: it disappears with the process.
    """

    def __init__(self, columns: int, most: int = HASHES) -> None:
        self.columns, self._width = columns, np.uint64(-(-most // BUCKETS) or 1)
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this object
        weakref.finalize(self, self._file.close)
        self._counts = array("q")  # records of each bucket in each chunk
        self._pending: list[Words] = []
        self._appended: list[tuple[int, ...]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size + len(self._appended)

    def append(self, *record: int) -> None:
        """Add one record. UniclError if the disk is full."""
        self._appended.append(record)
        if len(self._appended) >= _FEW:
            self._add_appended()

    def add(self, *columns: NDArray[np.integer]) -> None:
        """Add records, given by their columns (n,). UniclError if the disk is full."""
        for start in range(0, len(columns[0]), CHUNK):
            part = np.stack([column[start : start + CHUNK].astype(np.uint64) for column in columns], axis=1)
            self._pending.append(part)
            self._size += len(part)
            if sum(map(len, self._pending)) >= CHUNK:
                self._flush()

    def __iter__(self) -> Iterator[Words]:
        """Yield the records of each bucket that has some, (n, columns), ascending by all columns."""
        self._add_appended()
        self._flush()
        counts = np.array(self._counts, np.int64).reshape(-1, BUCKETS)
        starts = (np.cumsum(counts) - counts.ravel()).reshape(-1, BUCKETS)
        for bucket in range(BUCKETS):
            places = zip(starts[:, bucket].tolist(), counts[:, bucket].tolist(), strict=True)
            parts = [self._read(start, count) for start, count in places if count]
            if parts:
                records = np.concatenate(parts)
                yield records[np.lexsort(records.T[::-1])]

    def _add_appended(self) -> None:
        appended, self._appended = self._appended, []
        if appended:
            self.add(*np.array(appended, np.uint64).T)

    def _flush(self) -> None:
        if not self._pending:
            return
        part = np.concatenate(self._pending)
        self._pending = []
        which = (part[:, 0] // self._width).astype(np.uint8)
        data = part[np.argsort(which, kind="stable")].tobytes()
        try:
            self._file.seek(0, os.SEEK_END)
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise full_disk_error(error) from error
        self._counts.extend(np.bincount(which, minlength=BUCKETS).tolist())

    def _read(self, start: int, count: int) -> Words:
        size = 8 * self.columns
        self._file.seek(start * size)
        return np.frombuffer(self._file.read(count * size), np.uint64).reshape(-1, self.columns)


def mark_first(values: Words) -> NDArray[np.bool_]:
    """Mark the first of each run of equal values (n,)."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]
