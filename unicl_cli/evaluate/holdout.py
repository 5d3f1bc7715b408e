"""Choice of validation and few-shot rows by hash of their keys: the same on every machine and in every order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def rows_by_class(keys: Sequence[str], labels: Sequence[int], salt: str = "") -> dict[int, list[int]]:
    """Return the rows of each class, by ascending class, in the order of the hashes of ``salt`` and key."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)

    def place(row: int) -> tuple[bytes, int]:
        return hashlib.sha256((salt + keys[row]).encode()).digest(), row

    return {label: sorted(rows[label], key=place) for label in sorted(rows)}


def held_out_mask(keys: Sequence[str], labels: Sequence[int], *, share: float = 0.2) -> list[bool]:
    """Mark the rows that validate if a corpus has no validation split: ``share`` of each class.

    A class with one row keeps it for training.
    """
    out = [False] * len(keys)
    for rows in rows_by_class(keys, labels).values():
        for row in rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]:
            out[row] = True
    return out


def few_shot_mask(keys: Sequence[str], labels: Sequence[int], shots: int, seed: int) -> list[bool]:
    """Mark ``shots`` rows of each class, all if it has fewer. The rows of k shots are among those of 2k."""
    out = [False] * len(keys)
    for rows in rows_by_class(keys, labels, f"{seed}/").values():
        for row in rows[:shots]:
            out[row] = True
    return out
