"""Balanced streams: exact shares of classes in every pass, rows of a class in turn, the same rows from any position."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.core.sampler import BalancedStream, allot

COUNTS = [600, 90, 9, 1]


def skewed(seed: int = 0) -> np.ndarray:
    labels = np.repeat([7, 2, 5, 3], COUNTS)
    return np.random.default_rng(seed).permutation(labels)


def stream(power: float) -> BalancedStream:
    return BalancedStream(np.array([100, 200, 1, 399]), "0/0", skewed(), power)


@pytest.mark.parametrize(
    ("power", "expected"),
    [(0.0, [600, 90, 9, 1]), (0.5, [446, 174, 56, 19]), (1.0, [175, 175, 175, 175])],
)
def test_a_class_is_drawn_by_a_power_of_its_rows_in_every_pass(power, expected):
    drawn = stream(power)
    for number in (0, 1, 5):
        rows = drawn(number * 700, 700)
        got = [int((skewed()[rows] == label).sum()) for label in (7, 2, 5, 3)]
        assert got == pytest.approx(expected, abs=6)
        assert got == drawn.slots[[3, 0, 2, 1]].tolist(), "exactly the same in every pass"


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_the_rows_of_a_class_differ_by_one_draw_at_most(power):
    drawn = stream(power)
    for passes in (1, 3, 10):
        seen = np.bincount(drawn(0, passes * 700), minlength=700)
        for label in (7, 2, 5, 3):
            own = seen[skewed() == label]
            assert own.max() - own.min() <= 1


def test_any_position_is_reached_without_those_before_it():
    drawn = stream(0.5)
    whole = drawn(0, 2100)
    again = pickle.loads(pickle.dumps(drawn))
    np.testing.assert_array_equal(again(650, 800), whole[650:1450])
    assert len(np.unique(whole[:700] // 100)) == 7, "a pass is shuffled over the table"
    assert not np.array_equal(whole[:700], whole[700:1400])


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=30), power=st.floats(0, 1))
def test_what_is_allotted_is_all_there_is(counts, power):
    slots = allot(np.array(counts) ** (1 - power), sum(counts))
    assert slots.sum() == sum(counts)
    assert slots.min() >= 1
    if power == 1:
        assert slots.max() - slots.min() <= 1
