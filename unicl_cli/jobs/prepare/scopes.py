"""Rows among which duplicates are sought: those of one kind and split, by their digests and signatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unicl_cli.core.files import open_copy
from unicl_cli.data.near_images import THUMB_BYTES, find_nearly_equal
from unicl_cli.jobs.prepare.units import Unit

SIGNATURE = np.dtype([("hash", "<u8"), ("thumb", "u1", (THUMB_BYTES,)), ("state", "u1")])
"""The signature of an image in a file: its difference hash and thumbnail, and COMPARABLE, FLAT_IMAGE or 0."""
COMPARABLE, FLAT_IMAGE = 1, 2
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Scope:
    """The rows of units of one kind and split: 32 bytes for each in memory, and 9 more for ``near``.

    After `groups`, ``flat`` and ``crowded`` count the images that cannot be compared, and have too many candidates.
    """

    def __init__(self, units: Sequence[Unit], out: Path, *, near: bool) -> None:
        self.units, self.split = units, units[0].split
        self.starts = np.cumsum([0, *(unit.rows for unit in units)])
        data = b"".join((out / unit.hashes).read_bytes() for unit in units)
        self.digests = np.frombuffer(data, np.uint8).reshape(-1, 32).copy()
        self.files = [_map_signatures(out / unit.signatures) for unit in units] if near else None
        self.flat = self.crowded = 0

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
        own = np.arange(len(self.digests))
        equal = own.copy()  # the first row with the same digest
        for places in group_equal(self.digests):
            equal[places] = places[0]
        first = self._first_near(equal) if self.files is not None else equal
        order = np.lexsort((own, first))
        for places in np.split(order, np.flatnonzero(np.diff(first[order])) + 1):
            if len(places) > 1:
                yield places.tolist(), (equal[places] == equal[places[0]]).tolist()

    def _first_near(self, equal: Ints) -> Ints:
        """Return the first row that each row equals or nearly equals."""
        own = np.arange(len(equal))
        state = self.states()
        found = find_nearly_equal(self.hashes(), (state == COMPARABLE) & (equal == own), self.read)
        self.flat, self.crowded = int(((state == FLAT_IMAGE) & (equal == own)).sum()), found.crowded
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


def count_near_train(scopes: Sequence[Scope]) -> dict[str, int]:
    """Count for each other split the rows whose image nearly equals, and does not equal, one of `train`.

    Rows that are hidden do not count: they are left out.
    """
    training = [scope for scope in scopes if scope.split == "train"]
    counts: dict[str, int] = {}
    for split in dict.fromkeys(scope.split for scope in scopes if scope.split != "train"):
        others = [scope for scope in scopes if scope.split == split]
        counts[split] = _count_near(training, others) if training else 0
    return counts


def _count_near(training: Sequence[Scope], others: Sequence[Scope]) -> int:
    scopes = [*training, *others]
    ends = np.cumsum([len(scope.digests) for scope in scopes])
    fixed = int(ends[len(training) - 1])
    digests = np.concatenate([scope.digests for scope in scopes]).view("V32").ravel()
    usable = np.concatenate([scope.states() for scope in scopes]) == COMPARABLE
    usable[fixed:] &= ~np.isin(digests[fixed:], digests[:fixed])

    def read(rows: Ints) -> NDArray[np.uint8]:
        at = np.searchsorted(ends, rows, side="right")
        return np.stack(
            [
                scopes[number].read(np.array([row - int(ends[number]) + len(scopes[number].digests)]))[0]
                for number, row in zip(at.tolist(), rows.tolist(), strict=True)
            ]
        )

    hashes = np.concatenate([scope.hashes() for scope in scopes])
    return int((find_nearly_equal(hashes, usable, read, fixed).earlier >= 0).sum())
