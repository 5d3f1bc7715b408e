"""Equal images among the rows of several sources, byte for byte, found with as few reads as possible.

A file is known by its place and its size, which cost no read. Only images of one size are read: 12 kB of each, and all
bytes of those that are equal in them. An image whose place its source does not know is read once; one that is to be
downloaded is known by its URL alone.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.core.sampler import scramble
from unicl_cli.data.pictures import Extent
from unicl_cli.jobs.prepare.shards.download import url_of
from unicl_cli.jobs.prepare.shards.progress import Progress
from unicl_cli.storage.buckets import CHUNK, HASHES, Buckets, Words, mark_first
from unicl_cli.storage.text_hashes import count_distinct

UNREADABLE = -1
_UNKNOWN = 0
_THREADS = 8
_CHUNK = 512
_PIECE = 4096
_BLOCK = 1 << 20
_FEW = 2**31
"""Images below which their numbers are int32: half the memory."""
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 times the golden ratio, odd: its multiples are spread evenly."""
_SHOWN = 2000
"""Reads from which on the progress is shown."""
T = TypeVar("T")


class RowList(NamedTuple):
    """Rows of one source, in its order."""

    source: DatasetSource
    rows: Sequence[Row]


class _Known:
    """Facts about ``count`` images, of which only a mark for each one is in memory.

    ``hashes`` are records of a hash and the row, equal for equal images; ``sized`` those of images that are still to be
    compared: a hash of the size, the hash of the place, the row, and hashes of a sample and of the whole, or _UNKNOWN.
    """

    def __init__(self, count: int) -> None:
        self.is_readable = np.ones(count, np.bool_)  # has bytes
        self.hashes, self.sized = Buckets(2), Buckets(5)


def number_images(lists: Sequence[RowList], *, compare: bool = True) -> list[NDArray[np.integer]]:
    """Return for each list integers (rows,): equal numbers from 0 on for equal images, UNREADABLE without one.

    Without ``compare`` nothing is read: images at different places have different numbers. In memory are 6 bytes for
    each row.
    """
    starts = np.cumsum([0, *(len(item.rows) for item in lists)])
    known = _Known(int(starts[-1]))
    for number, (item, start) in enumerate(zip(lists, starts.tolist(), strict=False)):
        _look_at(item, number, start, known, compare=compare)
    if compare:
        _compare(known, lambda at: _extent_at(lists, starts, at))
    numbers = _number(known)
    return [numbers[start:end] for start, end in pairwise(starts.tolist())]


def _number(known: _Known) -> NDArray[np.integer]:
    """Return equal numbers for images with one hash; UNREADABLE without one."""
    count = len(known.is_readable)
    numbers = np.arange(count, dtype=np.int32 if count < _FEW else np.int64)
    if count_distinct(known.hashes) < count:
        met = 0
        for records in known.hashes:
            which = np.cumsum(mark_first(records[:, 0]))
            numbers[records[:, 1]] = met + which - 1
            met += int(which[-1])
    numbers[~known.is_readable] = UNREADABLE
    return numbers


def _look_at(item: RowList, number: int, start: int, known: _Known, *, compare: bool) -> None:
    """Note what is known of a list's images by their places, and by reading those whose place is not known."""
    extent: Callable[[Row], Extent | None] | None = getattr(item.source, "extent", None)
    unread = np.zeros(len(item.rows), np.bool_)
    for at, row in enumerate(item.rows, start):
        found = extent(row) if extent else None
        url = url_of(item.source, row)
        if url is not None:
            known.hashes.append(_hash_place(url), at)  # nothing is downloaded to compare it
        elif found is not None:
            known.is_readable[at] = found.size > 0
            place = _hash_place(f"{os.path.abspath(found.path)}\0{found.offset}\0{found.size}")  # noqa: PTH100
            if compare and found.size:
                known.sized.append(_spread(found.size), place, at, _UNKNOWN, _UNKNOWN)
            else:
                known.hashes.append(place, at)
        elif compare:
            unread[at - start] = True
        else:
            known.hashes.append(_hash_place(f"{number}:{at}"), at)
    _read_rows(item, number, start, known, unread)


def _read_rows(item: RowList, number: int, start: int, known: _Known, unread: NDArray[np.bool_]) -> None:
    """Read the images of a list that are ``unread``, and note their sizes and hashes."""

    def read(at: int) -> tuple[int, int, int]:
        try:
            data = item.source.read(item.rows[at])["image"]
        except Exception:  # noqa: BLE001 - the same row is read again by its unit, which counts it with its reason
            data = b""
        if not data:
            return 0, _UNKNOWN, _UNKNOWN
        return len(data), _hash(*(data[at : at + size] for at, size in _pieces(len(data)))), _hash(data)

    todo = (at for first in range(0, len(unread), CHUNK) for at in _marked(unread, first))
    with _show(int(np.count_nonzero(unread))) as shown:
        for at, (size, sample, whole) in _run(read, todo, shown):
            known.is_readable[start + at] = size > 0
            place = _hash_place(f"{number}:{start + at}")
            if size:
                known.sized.append(_spread(size), place, start + at, sample, whole)
            else:
                known.hashes.append(place, start + at)


def _marked(marks: NDArray[np.bool_], first: int) -> list[int]:
    """Return the places that are marked in the chunk that begins with ``first``."""
    return (first + np.flatnonzero(marks[first : first + CHUNK])).tolist()


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
            known.hashes.add(number[np.cumsum(_mark_places(records)) - 1], records[:, 2])


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


def _hash_place(place: str) -> int:
    return _hash(place.encode("utf-8", "surrogateescape"))


def _spread(size: int) -> int:
    """Return a distinct 64-bit number for each size: sizes are few and small, and buckets want an even spread."""
    return size * _GOLDEN % HASHES


def _show(count: int) -> AbstractContextManager[Progress | None]:
    """Return a display of the progress of many reads; one that shows nothing for few."""
    return Progress("compare", done=0, total=count, shards_done=0, shards=0) if count >= _SHOWN else nullcontext()


def _run(work: Callable[[int], T], todo: Iterable[int], shown: Progress | None) -> Iterator[tuple[int, T]]:
    """Yield each number with its result; many are worked on at once, and shown as progress."""
    of = iter(todo)
    with ThreadPoolExecutor(_THREADS) as threads:
        while chunk := list(islice(of, _CHUNK)):
            yield from zip(chunk, threads.map(work, chunk), strict=True)
            if shown:
                shown.tick(len(chunk), 0, {})
