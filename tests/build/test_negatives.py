"""Batches that have no negative, among classes and among label sets."""

from types import SimpleNamespace

import numpy as np
import pytest

from unicl_cli.build.negatives import count_lone_batches
from unicl_cli.contracts import LabelSets
from unicl_cli.data.mix import LABELS, Strand
from unicl_cli.evaluator_contracts import RowSets

SETS = LabelSets(2, (0, 0, 1, 1), ("colour", "shape"))


class Rows:
    """A table of rows with these labels and known groups."""

    def __init__(self, rows: list[tuple[list[int], int]]) -> None:
        self.rows = rows

    def label_sets(self) -> RowSets:
        ends = np.cumsum([0, *(len(labels) for labels, _ in self.rows)])
        values = np.array([label for labels, _ in self.rows for label in labels], np.int64)
        return RowSets(ends, values, np.array([known for _, known in self.rows]))


class AllRows:
    """An order in which each batch has all rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def batch(self, step: int):
        return np.zeros(self.rows, np.int64), np.arange(self.rows)


def lone(rows: list[tuple[list[int], int]], sets: LabelSets | None, *, hides: bool) -> bool:
    places = np.arange(4), (), (1, 2)
    strand = Strand(Rows(rows), LABELS, 1.0, None, np.array([len(rows)]), *places, (), (), None, 0)
    data = SimpleNamespace(mix=SimpleNamespace(strands=[strand]), order=AllRows(len(rows)), label_sets=sets)
    return count_lone_batches(data, 1, hides=hides) == 1


@pytest.mark.parametrize(
    ("rows", "supcon", "unicl"),
    [
        ([([0], 3), ([0], 3)], True, True),
        ([([0], 3), ([1], 3)], False, False),
        ([([0, 2], 3), ([0, 2], 3)], True, True),
        ([([0, 2], 3), ([0, 3], 3)], False, False),
        ([([0, 2], 3), ([0], 3)], False, False),
        ([([0], 1), ([2], 2)], False, True),  # a prompt of a shape is hidden from a row that knows colours alone
        ([([0], 1), ([1, 2], 3)], False, False),
        ([([0], 3), ([], 3)], False, False),
        ([([], 0), ([], 0)], False, False),
        ([([], 3)], True, True),
    ],
)
def test_a_batch_is_lone_if_no_row_is_a_negative_of_another(rows, supcon, unicl):
    assert lone(rows, SETS, hides=False) is supcon
    assert lone(rows, SETS, hides=True) is unicl


def test_a_batch_of_one_class_is_lone_without_label_sets():
    every = (1 << 63) - 1
    assert lone([([2], every)] * 3, None, hides=True)
    assert not lone([([2], every), ([], every)], None, hides=True)
    assert not lone([([2], every), ([1], every)], None, hides=True)
