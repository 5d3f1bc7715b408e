"""Equal images among the rows of several sources, byte for byte, found with as few reads as possible.

A file is known by its place and its size, which cost no read. Only images of one size are read: 12 kB of each, and
all bytes of those that are equal in them. An image whose place its source cannot tell is read once; one that is to be
downloaded is known by its URL alone.
"""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.core.text_hashes import count_distinct
from unicl_cli.data.pictures import Extent
from unicl_cli.jobs.prepare.download import url_of
from unicl_cli.jobs.prepare.progress import Progress

UNREADABLE = -1
_UNKNOWN = 0
_THREADS = 8
_CHUNK = 512
_PIECE = 4096
_BLOCK = 1 << 20
_FEW = 2**31
"""Images below which their numbers are int32: half the memory."""
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


def number_images(lists: Sequence[RowList], *, compare: bool = True) -> list[NDArray[np.integer]]:
    """Return for each list integers (rows,): equal numbers from 0 on for equal images, UNREADABLE without one.

    Without ``compare`` nothing is read: images at different places have different numbers.
    """
    starts = np.cumsum([0, *(len(item.rows) for item in lists)])
    count = int(starts[-1])
    known = _Known(np.zeros(count, np.int64), *(np.zeros(count, np.uint64) for _ in range(3)))  # memory when written
    for number, (item, (start, end)) in enumerate(zip(lists, pairwise(starts.tolist()), strict=True)):
        own = slice(start, end)
        part = _Known(known.size[own], known.place[own], known.sample[own], known.whole[own])
        _look_at(item, number, part, compare=compare)
    if compare and (known.size > 0).any():
        known = _compare(known, lambda at: _extent_at(lists, starts, at))
    numbers = _number(known)
    return [numbers[start:end] for start, end in pairwise(starts.tolist())]


def _number(known: _Known) -> NDArray[np.integer]:
    """Return equal numbers for images with one hash, of the most bytes that are known; UNREADABLE without one."""
    best = known.place
    for better in (known.sample, known.whole):
        np.copyto(best, better, where=better != _UNKNOWN)
    all_differ = count_distinct(best) == len(best)
    numbers = np.arange(len(best)) if all_differ else np.unique(best, return_inverse=True)[1]
    if len(best) < _FEW:
        numbers = numbers.astype(np.int32)
    numbers[known.size == UNREADABLE] = UNREADABLE
    return numbers


def _look_at(item: RowList, number: int, known: _Known, *, compare: bool) -> None:
    """Fill in what is known of a list's images by their places, and by reading those whose place is not known."""
    extent: Callable[[Row], Extent | None] | None = getattr(item.source, "extent", None)
    unknown = array("q")
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
