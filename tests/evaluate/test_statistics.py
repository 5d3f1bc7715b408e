"""Intervals and tests against scipy, published examples, enumeration and resampling of rows."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, permutation_test

from unicl_cli.evaluate.statistics import (
    adjust_holm,
    compare_shares,
    exact_p,
    fair_binomial,
    mean_interval,
    newcombe,
    share_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(713, 1000, 0.68419, 0.74018), (0, 100, 0.0, 0.03699), (38000, 50000, 0.75624, 0.76372), (1, 1, 0.20654, 1.0)],
)
def test_wilson_golden_values(hits, n, low, high):
    assert wilson(hits, n) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50, deadline=None)
def test_wilson_equals_scipy_and_stays_in_the_unit_interval(case):
    hits, n = case
    low, high = wilson(hits, n)
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert low == pytest.approx(theirs.low, abs=1e-9)
    assert high == pytest.approx(theirs.high, abs=1e-9)
    assert 0 <= low <= hits / n <= high <= 1


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=50, deadline=None)
def test_the_exact_test_of_single_hits_is_the_binomial_test_of_the_discordant_pairs(better, worse):
    differences = np.array([1] * better + [-1] * worse + [0] * 7)
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert exact_p(differences) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=11))
@settings(max_examples=40, deadline=None)
def test_the_exact_test_of_several_hits_per_item_equals_every_change_of_signs(differences):
    signs = product((-1, 1), repeat=len(differences))
    sums = [abs(sum(sign * value for sign, value in zip(each, differences, strict=True))) for each in signs]
    expected = sum(total >= abs(sum(differences)) for total in sums) / len(sums)
    assert exact_p(np.array(differences)) == pytest.approx(expected, rel=1e-9)


def test_the_exact_test_equals_scipys_permutation_test():
    differences = np.random.default_rng(1).integers(-3, 4, 12)
    theirs = permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert exact_p(differences) == pytest.approx(theirs.pvalue)


def test_the_binomial_of_many_pairs_adds_up():
    assert fair_binomial(20_000).sum() == pytest.approx(1, abs=1e-9)


def test_newcombes_interval_is_the_published_one():
    """Before and after stem cell transplantation: Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014)."""
    before = np.array([1] * 1 + [0] * 1 + [1] * 7 + [0] * 12)
    after = np.array([1] * 1 + [1] * 1 + [0] * 7 + [0] * 12)
    found = compare_shares(before, after, np.ones_like(before))
    assert (found.n, found.better, found.worse) == (21, 1, 7)
    assert found.difference == pytest.approx(-6 / 21)
    assert found.interval == (pytest.approx(-0.507, abs=5e-4), pytest.approx(-0.026, abs=5e-4))
    assert found.p == pytest.approx(0.0703, abs=1e-4)


pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_the_interval_of_a_difference_holds_it_has_a_width_and_turns_with_the_models(rows):
    first, second = (np.array(column) for column in zip(*rows, strict=True))
    low, high = newcombe(first, second)
    difference = second.mean() - first.mean()
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    assert high - low > 0.01
    assert newcombe(second, first) == (pytest.approx(-high), pytest.approx(-low))


def test_newcombes_interval_agrees_with_a_bootstrap_of_many_rows():
    rng = np.random.default_rng(0)
    first = rng.random(2000) < 0.7
    second = np.where(rng.random(2000) < 0.8, first, rng.random(2000) < 0.9)
    theirs = bootstrap(
        (second.astype(int) - first.astype(int),), np.mean, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert newcombe(first, second) == (pytest.approx(theirs.low, abs=2e-3), pytest.approx(theirs.high, abs=2e-3))


def test_captions_of_one_image_are_drawn_together():
    """With five captions that always agree, an image counts once: the interval is as wide as that of images."""
    rng = np.random.default_rng(0)
    found = (rng.random(400) < 0.6).astype(int)
    of_images = share_interval(found, np.ones_like(found))
    of_captions = share_interval(5 * found, np.full_like(found, 5))
    assert of_captions == (pytest.approx(of_images[0], abs=6e-3), pytest.approx(of_images[1], abs=6e-3))
    hits, trials = rng.integers(0, 3, 300), rng.integers(2, 6, 300)
    theirs = bootstrap(
        (hits, trials),
        lambda hits, trials, axis: hits.sum(axis) / trials.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    ours = share_interval(hits, trials)
    assert ours == (pytest.approx(theirs.low, abs=4e-3), pytest.approx(theirs.high, abs=4e-3))
    assert share_interval(hits, trials) == ours  # seeded


def test_a_bootstrap_of_items_that_are_all_alike_does_not_claim_certainty():
    all_found = np.full(4, 2)
    assert share_interval(all_found, all_found) == wilson(4, 4)
    low, high = share_interval(np.ones(6, int), np.full(6, 2))
    assert low < 0.2 < 0.5 < 0.8 < high
    same = compare_shares(all_found, all_found, all_found)
    assert (same.difference, same.better, same.worse, same.p) == (0, 0, 0, 1)
    assert same.interval == (pytest.approx(-wilson(0, 4)[1]), pytest.approx(wilson(0, 4)[1]))


def test_the_difference_of_captions_is_paired_by_image():
    """One model finds one caption more of every second image: unpaired, the noise of the images would hide it."""
    rng = np.random.default_rng(2)
    first = rng.integers(0, 5, 200)
    second = first + np.arange(200) % 2
    found = compare_shares(first, second, np.full(200, 5))
    assert found.difference == pytest.approx(0.1)
    assert (found.better, found.worse) == (100, 0)
    assert 0.08 < found.interval[0] < 0.1 < found.interval[1] < 0.12
    assert found.p == pytest.approx(2 * 0.5**100, rel=1e-9)


def test_the_interval_of_a_mean_of_classes_agrees_with_a_bootstrap_within_classes():
    rng = np.random.default_rng(0)
    rows = rng.integers(30, 200, 12)
    recalls = rng.uniform(0.2, 0.9, 12)
    hits = rng.binomial(rows, recalls)
    drawn = (rng.binomial(rows, hits / rows, (20_000, 12)) / rows).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    found = mean_interval(hits.tolist(), rows.tolist())
    assert found == (pytest.approx(low, abs=3e-3), pytest.approx(high, abs=3e-3))


def test_the_interval_of_a_mean_of_classes_has_a_width_where_every_row_is_a_hit():
    assert mean_interval([7], [7]) == pytest.approx(wilson(7, 7))
    low, high = mean_interval([2, 2, 2], [2, 2, 2])
    assert low < 0.7
    assert high == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_holms_adjustment_is_bonferroni_on_every_subset_that_holds_the_test(ps):
    """The closure principle (Marcus, Peritz, Gabriel 1976): Holm is the closed Bonferroni test."""
    numbers = range(len(ps))
    subsets = [each for size in range(1, len(ps) + 1) for each in combinations(numbers, size)]
    expected = [
        max(min(1.0, len(each) * min(ps[n] for n in each)) for each in subsets if number in each) for number in numbers
    ]
    assert adjust_holm(ps) == pytest.approx(expected)
