"""Rows, of one kind and split or of several, that are compared for duplicates by digests and signatures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unicl_cli.data.near_images import THUMB_BYTES, find_nearly_equal
from unicl_cli.jobs.prepare.shards.units import Unit
from unicl_cli.storage.files import open_copy

SIGNATURE = np.dtype([("hash", "<u8"), ("thumb", "u1", (THUMB_BYTES,)), ("state", "u1")])
"""The signature of an image in a file: its difference hash and thumbnail, and COMPARABLE, FLAT_IMAGE or 0."""
COMPARABLE, FLAT_IMAGE = 1, 2
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Scope:
    """The rows of some units: 32 bytes for each in memory, and 9 more for ``near``; ``files`` are their signatures.

    After `groups`, ``flat`` and ``crowded`` count the images that cannot be compared, and have too many candidates.
    """

    def __init__(self, units: Sequence[Unit], digests: NDArray[np.uint8], files: Sequence[NDArray[Any]] | None) -> None:
        self.units, self.digests, self.files = units, digests, files
        self.starts = np.cumsum([0, *(unit.rows for unit in units)])
        self.flat = self.crowded = 0

    @property
    def split(self) -> str:
        """The split of the first unit, which is that of all except in rows of several scopes."""
        return self.units[0].split

    def place(self, row: int) -> tuple[Unit, int]:
        """Return the unit of a row, and its number there."""
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.units[at], row - int(self.starts[at])

    def hide(self, rows: Sequence[int]) -> None:
        """Compare these rows with none any more."""
        self.digests[np.asarray(rows, np.int64)] = 0

    def groups(self) -> Iterator[tuple[list[int], list[bool]]]:
        """Yield the ascending row numbers of each group of equal or nearly equal images, and which equal the first.

        Every row of a group nearly equals its first, so no chain of small changes joins different images.
        """
        equal = self._first_equal()
        first = self._first_near(equal) if self.files is not None else equal
        order = np.lexsort((np.arange(len(first)), first))
        for places in np.split(order, np.flatnonzero(np.diff(first[order])) + 1):
            if len(places) > 1:
                yield places.tolist(), (equal[places] == equal[places[0]]).tolist()

    def match(self, fixed: int) -> Iterator[tuple[int, int, bool]]:
        """Yield each row from ``fixed`` on that equals or nearly equals one before, that row, and whether it equals."""
        equal = self._first_equal()
        first = self._first_near(equal, fixed)
        for row in (fixed + np.flatnonzero(first[fixed:] < fixed)).tolist():
            yield row, int(first[row]), bool(equal[row] < fixed)

    def _first_equal(self) -> Ints:
        """Return the first row with the same digest as each row."""
        equal = np.arange(len(self.digests))
        for places in group_equal(self.digests):
            equal[places] = places[0]
        return equal

    def _first_near(self, equal: Ints, fixed: int = 0) -> Ints:
        """Return the first row that each row equals or nearly equals; with ``fixed``, one before that or itself."""
        own = np.arange(len(equal))
        state = self.states()
        found = find_nearly_equal(self.hashes(), (state == COMPARABLE) & (equal == own), self.read, fixed)
        self.flat = int(((state == FLAT_IMAGE) & (equal == own)).sum())
        self.crowded += found.crowded
        return np.where(found.earlier < 0, own, found.earlier)[equal]

    def hashes(self) -> NDArray[np.uint64]:
        return np.concatenate([file["hash"] for file in self.files or ()])

    def states(self) -> NDArray[np.uint8]:
        """Return the state of each row, 0 for those that are hidden, uint8 (rows,)."""
        return np.concatenate([file["state"] for file in self.files or ()]) * self.digests.any(1)

    def read(self, rows: Ints) -> NDArray[np.uint8]:
        """Return thumbnails (n, THUMB_BYTES)."""
        files = self.files or []
        at = np.searchsorted(self.starts, rows, side="right") - 1
        places = zip(at.tolist(), (rows - self.starts[at]).tolist(), strict=True)
        return np.stack([files[number]["thumb"][row] for number, row in places])


def read_scope(units: Sequence[Unit], out: Path, *, near: bool) -> Scope:
    """Return the rows of units, whose digests and signatures are in ``out``."""
    data = b"".join((out / unit.hashes).read_bytes() for unit in units)
    files = [_map_signatures(out / unit.signatures) for unit in units] if near else None
    return Scope(units, np.frombuffer(data, np.uint8).reshape(-1, 32).copy(), files)


def _map_signatures(file: Path) -> NDArray[Any]:
    with open_copy(file) as copy:
        return np.memmap(copy, SIGNATURE, "r")


def group_equal(digests: NDArray[np.uint8]) -> Iterator[Ints]:
    """Yield the ascending row numbers of each group of two or more equal digests; ``digests`` is (n, 32)."""
    words = np.ascontiguousarray(digests).view(np.uint64)  # (n, 4)
    order = np.lexsort(words.T)  # stable: equal rows stay in ascending order
    ordered = words[order]
    ends = np.flatnonzero(np.append((ordered[1:] != ordered[:-1]).any(1), True)) + 1
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        if end - start > 1 and ordered[start].any():
            yield order[start:end]


class Match(NamedTuple):
    """A row of a scope whose image the row ``other`` of other scopes has, or nearly; both with their units."""

    scope: Scope
    at: int
    place: tuple[Unit, int]
    other: tuple[Unit, int]
    is_equal: bool


def match_across(fixed: Sequence[Scope], free: Sequence[Scope]) -> Iterator[Match]:
    """Yield each row of ``free`` that equals or nearly equals one of ``fixed``; images count as crowded there.

    Rows that are hidden match no other.
    """
    if not fixed or not free:
        return
    scopes = [*fixed, *free]
    joined = Scope(
        [unit for scope in scopes for unit in scope.units],
        np.concatenate([scope.digests for scope in scopes]),
        [file for scope in scopes for file in scope.files or ()],
    )
    ends = np.cumsum([len(scope.digests) for scope in scopes])
    for row, other, is_equal in joined.match(int(ends[len(fixed) - 1])):
        number = int(np.searchsorted(ends, row, side="right"))
        at = row - int(ends[number - 1])
        yield Match(scopes[number], at, joined.place(row), joined.place(other), is_equal)
    free[0].crowded += joined.crowded


def count_near_train(training: Sequence[Scope], others: Sequence[Scope]) -> Counter[str]:
    """Count for each other split the rows whose image nearly equals, and does not equal, one of `train`."""
    return Counter(match.place[0].split for match in match_across(training, others) if not match.is_equal)
