"""Labels of rows with label sets, read by class: the rows that have a class, and those that are annotated for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unicl_cli.evaluator_contracts import RowSets

Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class Annotations:
    """The labels of n rows among C classes; ``groups`` has the group of each class.

    A pair of a row and a class is known if the row is annotated for the group of the class, or has the class.
    """

    def __init__(self, sets: RowSets, groups: Sequence[int]) -> None:
        self.sets = sets
        self.groups: Numbers = np.array(groups, np.int64)

    def __len__(self) -> int:
        return len(self.sets.known)

    @cached_property
    def counts(self) -> Numbers:
        """Labels of each row, int64 (n,)."""
        return np.diff(self.sets.ends)

    @cached_property
    def positives(self) -> Numbers:
        """Rows that have each class, int64 (C,)."""
        return np.bincount(self.sets.values, minlength=len(self.groups))

    @cached_property
    def _by_class(self) -> tuple[Numbers, Numbers]:
        rows = np.repeat(np.arange(len(self)), self.counts)
        order = np.argsort(self.sets.values, kind="stable")
        return rows[order], np.concatenate([[0], self.positives.cumsum()])

    @cached_property
    def _annotated(self) -> dict[int, Bools]:
        return {group: (self.sets.known >> group & 1).astype(bool) for group in np.unique(self.groups).tolist()}

    def rows_of(self, label: int) -> Numbers:
        """Return the rows that have a class, ascending."""
        rows, ends = self._by_class
        return rows[ends[label] : ends[label + 1]]

    def annotated(self, group: int) -> Bools:
        """Mark the rows that are annotated for a group, bool (n,)."""
        return self._annotated[group]

    def has(self, start: int, stop: int) -> Bools:
        """Mark the rows that have each of the classes from ``start`` to ``stop``, bool (stop - start, n)."""
        found = np.zeros((stop - start, len(self)), bool)
        for label in range(start, stop):
            found[label - start, self.rows_of(label)] = True
        return found

    def knows(self, start: int, stop: int) -> Bools:
        """Mark the pairs that are known, for the classes from ``start`` to ``stop``, bool (stop - start, n)."""
        found = np.stack([self.annotated(group) for group in self.groups[start:stop].tolist()])
        return found | self.has(start, stop)

    def has_row(self, start: int, stop: int) -> Bools:
        """Mark the classes that each row from ``start`` to ``stop`` has, bool (stop - start, C)."""
        found = np.zeros((stop - start, len(self.groups)), bool)
        first, last = self.sets.ends[start], self.sets.ends[stop]
        found[np.repeat(np.arange(stop - start), self.counts[start:stop]), self.sets.values[first:last]] = True
        return found


def take_rows(sets: RowSets, rows: Sequence[int]) -> RowSets:
    """Return the label sets of some rows, in their order."""
    chosen = np.array(rows, np.int64)
    counts = np.diff(sets.ends)[chosen]
    ends = np.concatenate([[0], counts.cumsum()])
    inside = np.arange(ends[-1]) - np.repeat(ends[:-1], counts)
    return RowSets(ends, sets.values[np.repeat(sets.ends[:-1][chosen], counts) + inside], sets.known[chosen])


def join_sets(parts: Sequence[RowSets]) -> RowSets:
    """Return the label sets of the rows of all parts, in their order."""
    none = np.empty(0, np.int64)
    counts = np.concatenate([none, *(np.diff(part.ends) for part in parts)])
    values = np.concatenate([none, *(part.values for part in parts)])
    known = np.concatenate([none, *(part.known for part in parts)])
    return RowSets(np.concatenate([[0], counts.cumsum()]), values, known)


def add_ancestors(sets: RowSets, above: Sequence[tuple[int, ...]]) -> RowSets:
    """Return label sets in which each row also has what ``above`` has for its classes (`ancestors_of`), each once."""
    if all(own == (label,) for label, own in enumerate(above)):
        return sets
    lengths = np.array([len(own) for own in above], np.int64)
    flat, starts = np.array([label for own in above for label in own], np.int64), np.cumsum(lengths) - lengths
    counts = lengths[sets.values]
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(np.repeat(np.arange(len(sets.known)), np.diff(sets.ends)), counts)
    pairs = np.unique(rows * len(above) + flat[np.repeat(starts[sets.values], counts) + inside])
    ends = np.concatenate([[0], np.bincount(pairs // len(above), minlength=len(sets.known)).cumsum()])
    return RowSets(ends, pairs % len(above), sets.known)
