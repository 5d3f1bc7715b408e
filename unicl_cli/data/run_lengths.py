"""Run lengths of masks in COCO's order, down the columns: plain lists, or packed into text."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BITS = 60
"""Bits of the largest run length."""


def mask_of_runs(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return the mask (height, width), 0 and 1, of ``{size, counts}``. ValueError unless its runs fill the image."""
    counts: str | Sequence[int] = segmentation["counts"]
    runs = unpack_runs(counts) if isinstance(counts, str) else counts
    if list(segmentation["size"]) != [height, width] or min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"run lengths do not fit {height} x {width} pixels")
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(values, runs).reshape(width, height).T


def unpack_runs(text: str) -> list[int]:
    """Return the run lengths in COCO's packed text: 6 bits a letter, and from the third on differences over two."""
    numbers: list[int] = []
    number = shift = 0
    for letter in text.encode("ascii", "replace"):
        bits = letter - 48
        number |= (bits & 31) << shift
        shift += 5
        if shift > MOST_BITS:
            return []
        if not bits & 32:
            numbers.append(number - (1 << shift) if bits & 16 else number)
            number = shift = 0
    for place in range(3, len(numbers)):
        numbers[place] += numbers[place - 2]
    return numbers


def run_lengths(mask: NDArray[np.uint8]) -> list[int]:
    """Return the plain run lengths of a mask (height, width); the first run is of zeros."""
    flat = mask.T.reshape(-1) > 0
    edges = np.flatnonzero(np.diff(flat)) + 1
    ends = [*([0] if flat[0] else []), *edges.tolist(), flat.size]
    return [ends[0], *(b - a for a, b in pairwise(ends))]
