"""Equal images among the rows of several sources, byte for byte, found with as few reads as possible.

A file is known by its place and its size, which cost no read. Only images of one size are read: 12 kB of each, and
all bytes of those that are equal in them. An image whose place its source cannot tell is read once; one that is to be
downloaded is known by its URL alone.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.data.pictures import Extent
from unicl_cli.jobs.prepare.download import url_of
from unicl_cli.jobs.prepare.progress import Progress

UNREADABLE = -1
_UNKNOWN = 0
_THREADS = 8
_CHUNK = 512
_PIECE = 4096
_BLOCK = 1 << 20
_SHOWN = 2000
"""Reads from which on the progress is shown."""
Words = NDArray[np.uint64]
T = TypeVar("T")


class RowList(NamedTuple):
    """Rows of one source, in its order."""

    source: DatasetSource
    rows: Sequence[Row]


class _Known(NamedTuple):
    """The facts about n images: their size, and 64-bit hashes of their place and of some or all bytes; 0: unknown."""

    size: NDArray[np.int64]
    place: Words
    sample: Words
    whole: Words


def number_images(lists: Sequence[RowList], *, compare: bool = True) -> list[NDArray[np.int64]]:
    """Return for each list int64 (rows,): equal numbers from 0 on for equal images, UNREADABLE without one.

    Without ``compare`` nothing is read: images at different places have different numbers.
    """
    starts = np.cumsum([0, *(len(item.rows) for item in lists)])
    parts = [_look_at(item, number, compare=compare) for number, item in enumerate(lists)]
    known = _Known(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if compare:
        known = _compare(known, lambda at: _extent_at(lists, starts, at))
    best = np.where(known.whole != _UNKNOWN, known.whole, np.where(known.sample != _UNKNOWN, known.sample, known.place))
    numbers = np.full(len(best), UNREADABLE, np.int64)
    readable = known.size != UNREADABLE
    numbers[readable] = np.unique(best[readable], return_inverse=True)[1]
    return [numbers[start:end] for start, end in pairwise(starts.tolist())]


def _look_at(item: RowList, number: int, *, compare: bool) -> _Known:
    """Return what is known of a list's images by their places, and by reading those whose place is not known."""
    count = len(item.rows)
    known = _Known(np.full(count, _UNKNOWN, np.int64), *(np.zeros(count, np.uint64) for _ in range(3)))
    extent: Callable[[Row], Extent | None] | None = getattr(item.source, "extent", None)
    unknown: list[int] = []
    for at, row in enumerate(item.rows):
        found = extent(row) if extent else None
        url = url_of(item.source, row)
        if url is not None:
            place = url  # nothing is downloaded to compare it
        elif found is None:
            unknown.append(at)
            place = f"{number}:{at}"
        else:
            known.size[at] = found.size or UNREADABLE
            place = f"{os.path.abspath(found.path)}\0{found.offset}\0{found.size}"  # noqa: PTH100
        known.place[at] = _hash(place.encode("utf-8", "surrogateescape"))
    if compare:
        _read_rows(item, known, unknown)
    return known


def _read_rows(item: RowList, known: _Known, todo: Sequence[int]) -> None:
    """Read images of a list, and fill in their sizes and hashes."""

    def read(at: int) -> tuple[int, int, int]:
        try:
            data = item.source.read(item.rows[at])["image"]
        except Exception:  # noqa: BLE001 - the same row is read again by its unit, which counts it with its reason
            data = b""
        if not data:
            return UNREADABLE, _UNKNOWN, _UNKNOWN
        return len(data), _hash(*(data[start : start + size] for start, size in _pieces(len(data)))), _hash(data)

    for at, (size, sample, whole) in _run(read, todo):
        known.size[at], known.sample[at], known.whole[at] = size, sample, whole


def _compare(known: _Known, extent_at: Callable[[int], Extent | None]) -> _Known:
    """Read images of equal sizes, each place once: a sample of their bytes, and all of those with equal samples."""
    _, first, place_of = np.unique(known.place, return_index=True, return_inverse=True)
    size, sample, whole = known.size[first], known.sample[first], known.whole[first]
    alike = _shared(size) & (size > 0)
    todo = np.flatnonzero(alike & (sample == _UNKNOWN))
    for at, found in _run(lambda at: _hash_file(extent_at(int(first[at])), _pieces), todo.tolist()):
        sample[at] = found
    todo = np.flatnonzero(_shared(sample) & (sample != _UNKNOWN) & (whole == _UNKNOWN))
    for at, found in _run(lambda at: _hash_file(extent_at(int(first[at])), _blocks), todo.tolist()):
        whole[at] = found
    return known._replace(sample=sample[place_of], whole=whole[place_of])


def _shared(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the values that occur more than once."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[which] > 1


def _extent_at(lists: Sequence[RowList], starts: NDArray[np.int64], at: int) -> Extent | None:
    number = int(np.searchsorted(starts, at, side="right")) - 1
    source: Any = lists[number].source
    return source.extent(lists[number].rows[at - int(starts[number])])


def _hash_file(extent: Extent | None, parts: Callable[[int], Iterator[tuple[int, int]]]) -> int:
    """Hash parts of an extent; 0 if it cannot be read any more."""
    if extent is None:
        return _UNKNOWN
    try:
        with open(extent.path, "rb", buffering=0) as file:  # noqa: PTH123 - a third of the time of Path.open
            return _hash(*(_read_at(file, extent.offset + start, size) for start, size in parts(extent.size)))
    except OSError:
        return _UNKNOWN


def _read_at(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """Yield start and size of the beginning, the middle and the end; of all bytes if these are few."""
    if size <= 3 * _PIECE:
        yield 0, size
        return
    for start in (0, size // 2, size - _PIECE):
        yield start, _PIECE


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """Yield start and size of all bytes, in blocks."""
    for start in range(0, size, _BLOCK):
        yield start, min(_BLOCK, size - start)


def _hash(*parts: bytes) -> int:
    """Hash the joined parts to 64 bits, never 0: equal images agree, others in 1 of 2^64 cases."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little") or 1


def _run(work: Callable[[int], T], todo: Sequence[int]) -> Iterator[tuple[int, T]]:
    """Yield each number with its result; many are worked on at once, and many are shown as progress."""
    shown = Progress("compare", done=0, total=len(todo), shards_done=0, shards=0) if len(todo) >= _SHOWN else None
    with ThreadPoolExecutor(_THREADS) as threads, shown or nullcontext():
        for start in range(0, len(todo), _CHUNK):
            chunk = todo[start : start + _CHUNK]
            yield from zip(chunk, threads.map(work, chunk), strict=True)
            if shown:
                shown.tick(len(chunk), 0, {})
