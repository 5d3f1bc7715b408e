"""Which rows make up a step: permutations, exact shares, the same batches from any step and for any number of ranks."""

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.core.sampler import WINDOW, Alternation, BlockOrder, Mixture, Permutation, Stream, seed_of, share

FEW = settings(max_examples=25, deadline=None)
groups = st.lists(st.integers(1, 9), min_size=1, max_size=150).map(np.array)
seeds = st.integers(0, 2**63)

GOLDEN_PERM = [7, 1, 9, 8, 5, 0, 6, 2, 3, 4]
GOLDEN_STREAM = [0, 1, 0, 0, 0, 1, 2, 1, 2, 2, 0, 0, 2, 0, 2, 0, 0, 0, 1, 0, 1, 0, 2, 1]
GOLDEN_ROWS = [6, 68, 10, 0, 12, 23, 32, 43, 0, 36, 8, 1, 13, 7, 25, 3, 4, 5, 4, 7, 26, 9, 7, 24]


def mixture(*, batch_size=24, shares=("1/2", "1/4", "1/4"), seed=3):
    tables = [np.array([5, 5, 3]), np.array([1] * 70), np.array([40])]
    return Mixture([Stream(t, f"{seed}/{n}") for n, t in enumerate(tables)], list(map(Fraction, shares)), batch_size, 7)


@FEW
@given(n=st.integers(1, 3000), seed=seeds)
def test_a_permutation_reaches_every_number_once(n, seed):
    assert sorted(Permutation(n, seed)(np.arange(n)).tolist()) == list(range(n))


def test_a_permutation_of_a_hundred_million_needs_no_table():
    perm = Permutation(10**8, 1)
    some = np.arange(0, 10**8, 99_991)
    images = perm(some)
    assert len(set(images.tolist())) == len(some)
    assert 0 <= images.min() <= images.max() < 10**8
    assert abs(images.mean() / 10**8 - 0.5) < 0.05


def test_permutations_of_two_seeds_differ():
    assert Permutation(100, 1)(np.arange(100)).tolist() != Permutation(100, 2)(np.arange(100)).tolist()


@pytest.mark.parametrize("index", [7, 8, 2**40, -1])
def test_an_index_outside_a_permutation_is_refused(index):
    with pytest.raises(IndexError, match="outside a permutation of 7"):
        Permutation(7, 0)([0, index])


@FEW
@given(sizes=groups, seed=seeds, number=st.integers(0, 5))
def test_each_pass_of_a_stream_visits_every_row_once(sizes, seed, number):
    stream = Stream(sizes, str(seed))
    rows = stream(number * stream.rows, stream.rows)
    assert sorted(rows.tolist()) == list(range(sizes.sum()))


@FEW
@given(sizes=groups, seed=seeds, start=st.integers(0, 500), count=st.integers(1, 100), cut=st.integers(0, 100))
def test_a_stream_is_the_same_however_it_is_cut(sizes, seed, start, count, cut):
    whole = Stream(sizes, str(seed))(start, count).tolist()
    cut = min(cut, count)
    fresh = Stream(sizes, str(seed))
    assert fresh(start, cut).tolist() + fresh(start + cut, count - cut).tolist() == whole


def test_two_passes_have_two_orders():
    stream = Stream(np.array([50, 50]), "0")
    assert stream(0, 100).tolist() != stream(100, 100).tolist()


def test_a_batch_touches_few_row_groups():
    sizes = np.full(1000, 10)
    order = BlockOrder(sizes, "0")
    for start in range(0, 10_000 - 128, 777):
        touched = set((order(np.arange(start, start + 128)) // 10).tolist())
        assert len(touched) <= 2 * WINDOW
    assert len({int(row) // 10 for row in order(np.arange(640))}) == WINDOW, "the first window is 64 groups"


def test_windows_mix_neighbouring_groups():
    order = BlockOrder(np.full(100, 10), "0")
    assert len(set((order(np.arange(10)) // 10).tolist())) > 3, "ten rows in a row come from several groups"


def test_a_stream_crosses_process_borders():
    stream = Stream(np.array([3, 4, 5]), "x")
    assert pickle.loads(pickle.dumps(stream))(5, 40).tolist() == stream(5, 40).tolist()


@FEW
@given(
    parts=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    batch_size=st.integers(16, 300),
    step=st.integers(0, 10**6),
)
def test_shares_are_exact_in_the_long_run_and_off_by_less_than_a_row_in_a_batch(parts, batch_size, step):
    shares = [Fraction(p, sum(parts)) for p in parts]
    mix = Mixture([Stream(np.array([p + 2]), str(n)) for n, p in enumerate(parts)], shares, batch_size, 0)
    taken = mix.used_before(step)
    assert sum(taken) == step * batch_size
    largest = shares.index(max(shares))
    for n, (count, part) in enumerate(zip(taken, shares, strict=True)):
        error = count - part * step * batch_size
        assert 0 <= error < len(parts) if n == largest else -1 < error <= 0
    stream, row = mix.batch(step)
    counts = Counter(stream.tolist())
    for n, part in enumerate(shares):
        assert abs(counts[n] - part * batch_size) < (len(parts) if n == largest else 1)
        assert all(0 <= r < parts[n] + 2 for r in row[stream == n])


def test_half_labels_is_half_in_every_batch():
    mix = mixture(shares=("1/2", "1/2", "0"))
    for step in range(40):
        stream, _ = mix.batch(step)
        assert Counter(stream.tolist()) == {0: 12, 1: 12}


def test_a_mixture_is_the_same_whatever_step_it_starts_at():
    whole = mixture()
    for step in range(12):
        whole.batch(step)
    for step in (11, 3, 7):
        for a, b in zip(whole.batch(step), mixture().batch(step), strict=True):
            assert a.tolist() == b.tolist()


def test_visits_of_rows_differ_by_at_most_one():
    mix = mixture()
    drawn = [Counter() for _ in mix.streams]
    for step in range(37):
        for stream, row in zip(*mix.batch(step), strict=True):
            drawn[stream][int(row)] += 1
    for stream, counts in zip(mix.streams, drawn, strict=True):
        visits = [counts[row] for row in range(stream.rows)]
        assert max(visits) - min(visits) <= 1


def test_the_slots_of_a_batch_are_permuted():
    stream, _ = mixture().batch(0)
    assert stream.tolist() != sorted(stream.tolist())
    assert stream.tolist() != mixture().batch(1)[0].tolist()


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=3)


@FEW
@given(labels=SIZES, others=SIZES)
def test_the_share_of_several_streams_together_is_off_by_less_than_a_row_per_stream(labels, others):
    """The share of label rows, whichever stream takes what rounding leaves."""
    parts, total = [*labels, *others], Fraction(sum(labels), sum(labels) + sum(others))
    shares = [Fraction(part, sum(parts)) for part in parts]
    mix = Mixture([Stream(np.array([1000]), str(n)) for n in range(len(parts))], shares, 37, 0)
    for step in range(20):
        stream, _ = mix.batch(step)
        assert abs(int((stream < len(labels)).sum()) - total * 37) < max(len(labels), len(others))
    assert abs(sum(mix.used_before(10**6)[: len(labels)]) - total * 37 * 10**6) < max(len(labels), len(others))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_shares_of_all_ranks_are_the_batch_in_order(world):
    stream, row = mixture().batch(5)
    parts = [share(24, rank, world) for rank in range(world)]
    assert {p.stop - p.start for p in parts} == {24 // world}
    assert np.concatenate([row[p] for p in parts]).tolist() == row.tolist()
    assert np.concatenate([stream[p] for p in parts]).tolist() == stream.tolist()


def test_shares_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="sum to 3/4"):
        mixture(shares=("1/2", "1/4", "0"))


def test_a_batch_smaller_than_rounding_needs_is_refused():
    with pytest.raises(ValueError, match=r"a batch of 8 is too small for 3 streams .*: it needs at least 9 rows"):
        mixture(batch_size=8)


@pytest.mark.parametrize("part", ["1/2", "1/3", "7/10"])
def test_alternation_gives_whole_steps_in_exact_turn(part):
    first, second = mixture(shares=("1", "0", "0")), mixture(shares=("0", "1", "0"))
    both = Alternation(first, second, Fraction(part))
    kinds = []
    for step in range(60):
        stream, row = both.batch(step)
        (kind,) = set(stream.tolist())
        expected = (first, second)[kind].batch(kinds.count(kind))
        assert row.tolist() == expected[1].tolist(), "each mixture goes on where it was left"
        kinds.append(kind)
        assert -1 < kinds.count(0) - Fraction(part) * (step + 1) <= 0
    assert kinds.count(0) == Fraction(part) * 60
    assert both.batch_size == 24


def test_seeds_are_numpys_and_depend_on_every_number():
    assert seed_of(1, 2, 3) == int(np.random.SeedSequence([1, 2, 3]).generate_state(1)[0])
    assert len({seed_of(*key) for key in [(0,), (0, 1), (1, 0), (1, 1), (0, 1, 1)]}) == 5
    assert 0 <= seed_of(2**40, 7) < 2**32


def test_the_order_of_a_run_never_changes():
    """Golden: what these numbers are is free, but a change of them breaks every run that is to be continued."""
    assert Permutation(10, 0)(np.arange(10)).tolist() == GOLDEN_PERM
    stream, row = mixture().batch(3)
    assert stream.tolist() == GOLDEN_STREAM
    assert row.tolist() == GOLDEN_ROWS
