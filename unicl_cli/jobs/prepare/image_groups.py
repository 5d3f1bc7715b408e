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
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.core.buckets import CHUNK, Buckets, Words, mark_first
from unicl_cli.core.sampler import scramble
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
T = TypeVar("T")
_Sized = tuple[int, int, int, int, int]
"""An image's size, hash of its place, row, and hashes of a sample and of all its bytes, or _UNKNOWN."""


class RowList(NamedTuple):
    """Rows of one source, in its order."""

    source: DatasetSource
    rows: Sequence[Row]


class _Known(NamedTuple):
    """Facts about images: a hash of each one's place or bytes, and places of those that may be equal to others.

    ``number`` (n,) are the hashes, ``is_readable`` (n,) marks images with bytes. ``sized`` are records of those whose
    size is known: a hash of the size, the hash of the place, the row, and hashes of a sample and of the whole, or 0.
    """

    number: Words
    is_readable: NDArray[np.bool_]
    sized: Buckets


def number_images(lists: Sequence[RowList], *, compare: bool = True) -> list[NDArray[np.integer]]:
    """Return for each list integers (rows,): equal numbers from 0 on for equal images, UNREADABLE without one.

    Without ``compare`` nothing is read: images at different places have different numbers. In memory are 13 bytes for
    each row.
    """
    starts = np.cumsum([0, *(len(item.rows) for item in lists)])
    count = int(starts[-1])
    known = _Known(np.zeros(count, np.uint64), np.ones(count, np.bool_), Buckets(5))
    for number, (item, start) in enumerate(zip(lists, starts.tolist(), strict=False)):
        _look_at(item, number, start, known, compare=compare)
    if compare:
        _compare(known, lambda at: _extent_at(lists, starts, at))
    numbers = _number(known)
    return [numbers[start:end] for start, end in pairwise(starts.tolist())]


def _number(known: _Known) -> NDArray[np.integer]:
    """Return equal numbers for images with one hash; UNREADABLE without one."""
    count = len(known.number)
    hashes = Buckets(2)
    for start in range(0, count, CHUNK):
        part = known.number[start : start + CHUNK]
        hashes.add(part, np.arange(start, start + len(part)))
    numbers = np.arange(count, dtype=np.int32 if count < _FEW else np.int64)
    if count_distinct(hashes) < count:
        met = 0
        for records in hashes:
            which = np.cumsum(mark_first(records[:, 0]))
            numbers[records[:, 1]] = met + which - 1
            met += int(which[-1])
    numbers[~known.is_readable] = UNREADABLE
    return numbers


def _look_at(item: RowList, number: int, start: int, known: _Known, *, compare: bool) -> None:
    """Fill in what is known of a list's images by their places, and by reading those whose place is not known."""
    extent: Callable[[Row], Extent | None] | None = getattr(item.source, "extent", None)
    unknown = array("q")
    sized: list[_Sized] = []
    for at, row in enumerate(item.rows, start):
        found = extent(row) if extent else None
        url = url_of(item.source, row)
        if url is not None:
            place = url  # nothing is downloaded to compare it
        elif found is None:
            unknown.append(at)
            place = f"{number}:{at}"
        else:
            place = f"{os.path.abspath(found.path)}\0{found.offset}\0{found.size}"  # noqa: PTH100
        known.number[at] = named = _hash(place.encode("utf-8", "surrogateescape"))
        if found is not None and url is None:
            known.is_readable[at] = found.size > 0
            _add_sized(known, sized, (found.size, named, at, _UNKNOWN, _UNKNOWN))
    _flush_sized(known, sized)
    if compare:
        _read_rows(item, start, known, unknown)


def _add_sized(known: _Known, sized: list[_Sized], facts: _Sized) -> None:
    """Add the facts of an image to the next records."""
    sized.append(facts)
    if len(sized) >= _CHUNK:
        _flush_sized(known, sized)


def _flush_sized(known: _Known, sized: list[_Sized]) -> None:
    if sized:
        size, *others = np.array(sized, np.uint64).T
        known.sized.add(scramble(size), *others)
        sized.clear()


def _read_rows(item: RowList, first: int, known: _Known, todo: Sequence[int]) -> None:
    """Read images of a list, whose rows begin with ``first``, and add their sizes and hashes."""

    def read(at: int) -> tuple[int, int, int]:
        try:
            data = item.source.read(item.rows[at - first])["image"]
        except Exception:  # noqa: BLE001 - the same row is read again by its unit, which counts it with its reason
            data = b""
        if not data:
            return 0, _UNKNOWN, _UNKNOWN
        return len(data), _hash(*(data[start : start + size] for start, size in _pieces(len(data)))), _hash(data)

    sized: list[_Sized] = []
    with _show(len(todo)) as shown:
        for at, (size, sample, whole) in _run(read, todo, shown):
            known.is_readable[at] = size > 0
            if size:
                _add_sized(known, sized, (size, int(known.number[at]), at, sample, whole))
    _flush_sized(known, sized)


def _compare(known: _Known, extent_at: Callable[[int], Extent | None]) -> None:
    """Give images with the same bytes the same hash: those of one size are read, each place once.

    Of these, a sample is read, and all bytes of those with equal samples.
    """
    todo = sum(int(np.count_nonzero(_mark_unread(_places(records)))) for records in known.sized)
    with _show(todo) as shown:
        for records in known.sized:
            places = _places(records)
            size, place, row, sample, whole = places.T
            unread = np.flatnonzero(_mark_unread(places)).tolist()
            for at, found in _run(lambda at: _hash_file(extent_at(int(row[at])), _pieces), unread, shown):  # noqa: B023 - runs in this round
                sample[at] = found
            alike = _shared(scramble(size ^ scramble(sample))) & (sample != _UNKNOWN)
            unread = np.flatnonzero(alike & (whole == _UNKNOWN)).tolist()
            for at, found in _run(lambda at: _hash_file(extent_at(int(row[at])), _blocks), unread, None):  # noqa: B023 - as above
                whole[at] = found
            number = np.where(alike & (whole != _UNKNOWN), whole, place)
            known.number[records[:, 2]] = number[np.cumsum(_mark_places(records)) - 1]


def _mark_places(records: Words) -> NDArray[np.bool_]:
    """Mark the first record of each place; those of one size and place follow each other."""
    return mark_first(records[:, 0]) | mark_first(records[:, 1])


def _places(records: Words) -> Words:
    return records[_mark_places(records)]


def _mark_unread(places: Words) -> NDArray[np.bool_]:
    """Mark the images of equal sizes whose bytes are not known."""
    return _shared(places[:, 0]) & (places[:, 3] == _UNKNOWN)


def _shared(values: Words) -> NDArray[np.bool_]:
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


def _show(count: int) -> AbstractContextManager[Progress | None]:
    """Return a display of the progress of many reads; one that shows nothing for few."""
    return Progress("compare", done=0, total=count, shards_done=0, shards=0) if count >= _SHOWN else nullcontext()


def _run(work: Callable[[int], T], todo: Sequence[int], shown: Progress | None) -> Iterator[tuple[int, T]]:
    """Yield each number with its result; many are worked on at once, and shown as progress."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(todo), _CHUNK):
            chunk = todo[start : start + _CHUNK]
            yield from zip(chunk, threads.map(work, chunk), strict=True)
            if shown:
                shown.tick(len(chunk), 0, {})
