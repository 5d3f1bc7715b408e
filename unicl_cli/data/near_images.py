"""Nearly equal images: candidates by their difference hashes, each verified on thumbnails of 8 x 8 pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_BITS = 4
"""Bits of 64 in which the difference hashes of nearly equal images differ, at most."""
SIDE = 8
THUMB_BYTES = 3 * SIDE * SIDE
SIMILAR = 0.99
"""Correlation of the thumbnails of nearly equal images, at least. docs/corpus.md has the measurement behind it."""
FLAT = 4.0
"""A thumbnail whose standard deviation, in levels of 255, is less shows nothing that could be compared."""
MOST_CONTRAST, MOST_LEVELS = 1.5, 51.0
"""The largest ratio of the contrasts of nearly equal images, and difference of a mean colour, in levels of 255."""
MOST_COMPARED = 1000
"""An image is compared with so many candidates at most: those that come first."""
_BANDS = tuple(np.uint64(sum(1 << bit for bit in range(band, 64, MOST_BITS + 1))) for band in range(MOST_BITS + 1))
"""Interleaved, because neighbouring bits of a hash are alike in many images, such as those with a plain border."""
_PORTION, _CHUNK = 1 << 21, 1024
"""Pairs of hashes that are compared at a time, and rows that are looked up at a time."""
Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Thumbs = NDArray[np.uint8]


def make_thumbnail(image: Image.Image) -> bytes:
    """Return the THUMB_BYTES of an image at SIDE x SIDE pixels, RGB."""
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def as_hash(value: int) -> int:
    """Return a signed difference hash, as corpora store it, as an unsigned number."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def are_flat(thumbs: Thumbs) -> NDArray[np.bool_]:
    """Mark thumbnails (n, THUMB_BYTES) that show nothing: all black, all white. Any two of them look alike."""
    return _measure(thumbs).contrast < FLAT


def compare_thumbs(one: Thumbs, others: Thumbs) -> NDArray[np.float32]:
    """Return the correlation of a thumbnail (THUMB_BYTES,) with each of the others (n, THUMB_BYTES), float32 (n,).

    The mean of each colour channel is taken off first, so that a tint does not make images alike. It is 0 if contrast
    or mean colour differ too much: a grey and a white circle on black correlate, too.
    """
    a, b = _measure(one[None]), _measure(others)
    low, high = np.minimum(a.contrast, b.contrast), np.maximum(a.contrast, b.contrast)
    fits = (low >= FLAT) & (high <= MOST_CONTRAST * low) & (np.abs(a.colour - b.colour).max(1) <= MOST_LEVELS)
    return np.where(fits, b.vectors @ a.vectors[0], 0).astype(np.float32)


class _Measured(NamedTuple):
    """Thumbnails as vectors of length 1 (n, THUMB_BYTES), their standard deviations (n,) and mean colours (n, 3)."""

    vectors: NDArray[np.float32]
    contrast: NDArray[np.float32]
    colour: NDArray[np.float32]


def _measure(thumbs: Thumbs) -> _Measured:
    values = thumbs.reshape(len(thumbs), SIDE * SIDE, 3).astype(np.float32)
    colour = values.mean(1)
    centred = (values - colour[:, None]).reshape(len(thumbs), THUMB_BYTES)
    length = np.sqrt((centred**2).sum(1))
    return _Measured(centred / np.maximum(length, 1e-6)[:, None], length / np.sqrt(THUMB_BYTES), colour)


class HashIndex:
    """An index of difference hashes: 60 bytes per hash.

    Two hashes that differ in MOST_BITS bits agree in one of MOST_BITS + 1 bands (pigeonhole), so only hashes that agree
    in a band need to be compared.
    """

    def __init__(self, hashes: Words) -> None:
        self.hashes = hashes
        self._tables: list[tuple[Words, NDArray[np.int32]]] = []
        for band in _BANDS:
            keys = hashes & band
            order = np.argsort(keys, kind="stable").astype(np.int32)
            self._tables.append((keys[order], order))

    def find(self, hashes: Words) -> Iterator[tuple[Ints, Ints]]:
        """Yield once each pair (place in ``hashes``, place in the index) that differs in at most MOST_BITS bits."""
        for number, (keys, order) in enumerate(self._tables):
            wanted = hashes & _BANDS[number]
            low, high = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            for start, end in _cut_by_size(high - low):
                counts = (high - low)[start:end]
                asked = np.repeat(np.arange(start, end), counts)
                skipped = np.repeat(low[start:end] - np.cumsum(counts) + counts, counts)
                found = order[np.arange(len(asked)) + skipped].astype(np.int64)
                differ = hashes[asked] ^ self.hashes[found]
                near = np.bitwise_count(differ) <= MOST_BITS
                for band in _BANDS[:number]:  # where they agree in an earlier band, too, that one has found them
                    near &= differ & band != 0
                yield asked[near], found[near]

    def group(self, hashes: Words) -> list[Ints]:
        """Return for each of ``hashes`` the places in the index that are near it, ascending."""
        pairs = [np.concatenate(column) for column in zip(*self.find(hashes), strict=True)]
        if not pairs:
            return [np.empty(0, np.int64) for _ in hashes]
        asked, found = pairs
        order = np.lexsort((found, asked))
        return np.split(found[order], np.searchsorted(asked[order], np.arange(1, len(hashes))))


def _cut_by_size(counts: Ints) -> Iterator[tuple[int, int]]:
    """Cut a list into runs whose counts are about _PORTION together."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _PORTION, "right")))
        yield start, end
        start = end


class NearlyEqual(NamedTuple):
    """For each row the earlier row that its image nearly equals, or -1, int64 (rows,).

    ``crowded`` rows had more than MOST_COMPARED candidates, and do not equal any of the first ones.
    """

    earlier: Ints
    crowded: int


def find_candidates(hashes: Words, usable: NDArray[np.bool_], fixed: int = 0) -> NDArray[np.bool_]:
    """Mark the rows with a hash near that of another: all others are nearly equal to none.

    With ``fixed``, only the first ``fixed`` rows and the rows after them are compared.
    """
    distinct, number = np.unique(hashes, return_inverse=True)
    is_free = np.arange(len(hashes)) >= fixed
    free = np.bincount(number[usable & is_free], minlength=len(distinct))
    other = np.bincount(number[usable & ~is_free], minlength=len(distinct)) if fixed else free
    near_free, near_other = np.zeros_like(free), np.zeros_like(other)
    index = HashIndex(distinct)
    for asked, found in index.find(distinct):
        near_free += np.bincount(asked, free[found], len(distinct)).astype(np.int64)
        near_other += np.bincount(asked, other[found], len(distinct)).astype(np.int64)
    met = near_other[number] > 0 if fixed else near_other[number] > 1
    return usable & np.where(is_free, met, near_free[number] > 0)


def find_nearly_equal(
    hashes: Words, usable: NDArray[np.bool_], read: Callable[[Ints], Thumbs], fixed: int = 0
) -> NearlyEqual:
    """Find for each row the first earlier row that its image nearly equals and that equals none before it itself.

    With ``fixed``, the rows after the first ``fixed`` ones are compared with these only. Rows that are not ``usable``
    equal no other. ``read`` returns the thumbnails of rows.
    """
    earlier = np.full(len(hashes), -1, np.int64)
    rows = np.flatnonzero(find_candidates(hashes, usable, fixed))
    distinct, number = np.unique(hashes[rows], return_inverse=True)
    index = HashIndex(distinct)
    kept: defaultdict[int, list[int]] = defaultdict(list)
    first = int(np.searchsorted(rows, fixed))
    for row, place in zip(rows[:first].tolist(), number[:first].tolist(), strict=True):
        _keep(kept[place], row)
    crowded = 0
    for start in range(first, len(rows), _CHUNK):
        some = slice(start, start + _CHUNK)
        groups = index.group(distinct[number[some]])
        for row, place, near in zip(rows[some].tolist(), number[some].tolist(), groups, strict=True):
            lists = [kept[other] for other in near.tolist() if other in kept]
            candidates = list(islice(merge(*lists), MOST_COMPARED))
            found = _first_similar(row, candidates, read) if candidates else -1
            earlier[row] = found
            crowded += found < 0 and len(candidates) == MOST_COMPARED
            if found < 0 and not fixed:
                _keep(kept[place], row)
    return NearlyEqual(earlier, crowded)


def _keep(rows: list[int], row: int) -> None:
    if len(rows) < MOST_COMPARED:
        rows.append(row)


def _first_similar(row: int, candidates: Sequence[int], read: Callable[[Ints], Thumbs]) -> int:
    thumbs = read(np.array([row, *candidates], np.int64))
    alike = np.flatnonzero(compare_thumbs(thumbs[0], thumbs[1:]) >= SIMILAR)
    return candidates[int(alike[0])] if len(alike) else -1
