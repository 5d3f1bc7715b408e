"""Average precision, its interval, and F1 of label sets, beside scikit-learn's."""

import numpy as np
import pytest
from scored_sets import blocks_of, random_case, sets_of
from sklearn.metrics import average_precision_score, f1_score

from unicl_cli.evaluate.annotations import add_ancestors, take_rows
from unicl_cli.evaluate.multilabel import (
    Cut,
    influence,
    mean_and_interval,
    measure_classes,
    rank_all_pairs,
    rank_positives,
)

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_average_precision_is_that_of_scikit_learn_over_known_pairs(seed, size):
    scores, has, known, truth = random_case(seed)
    wanted = np.ones(has.shape[1], bool)
    found = measure_classes(blocks_of(scores, size), truth, wanted)
    for label in range(has.shape[1]):
        own = known[:, label]
        assert (found.positives[label], found.annotated[label]) == (has[:, label].sum(), own.sum())
        if has[:, label].any():
            expected = average_precision_score(has[own, label], scores[own, label])
            assert found.precision[label] == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(found.precision[label])
    ranked = rank_all_pairs(blocks_of(scores, size), truth, wanted)
    assert ranked.average_precision() == pytest.approx(average_precision_score(has[known], scores[known]), abs=1e-12)
    some = wanted.copy()
    some[[0, 4]] = False
    ranked = rank_all_pairs(blocks_of(scores, size), truth, some)
    expected = average_precision_score(has[:, some][known[:, some]], scores[:, some][known[:, some]])
    assert ranked.average_precision() == pytest.approx(expected, abs=1e-12)
    assert measure_classes(blocks_of(scores, size), truth, some).positives[[0, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_f1_is_that_of_scikit_learn_over_known_pairs(seed):
    scores, has, known, truth = random_case(seed)
    cut = Cut(1.7, -0.4, np.random.default_rng(seed).random(has.shape[1]))
    found = measure_classes(blocks_of(scores, 3), truth, np.ones(has.shape[1], bool), cut)
    answers = 1 / (1 + np.exp(-(1.7 * scores.astype(float) - 0.4))) >= cut.thresholds
    for label in range(has.shape[1] - 1):
        own = known[:, label]
        assert found.f1()[label] == pytest.approx(f1_score(has[own, label], answers[own, label]), abs=1e-12)
    micro = 2 * found.hits.sum() / (found.answered.sum() + found.positives.sum())
    assert micro == pytest.approx(f1_score(has[known], answers[known]), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_influence_is_the_derivative_by_the_weight_of_a_row(seed):
    """scikit-learn's average precision takes weights: the difference quotient is the oracle."""
    scores, has, _, _ = random_case(seed, rows=25)
    scores, has = scores[:, 0], has[:, 0]
    found = influence(rank_positives(scores[has], scores), scores, has)
    for row in range(len(scores)):
        step = np.eye(len(scores))[row] * 1e-5
        above, below = (average_precision_score(has, scores, sample_weight=1 + way * step) for way in (1, -1))
        assert found[row] == pytest.approx((above - below) / 2e-5, abs=1e-6)
    assert found.sum() == pytest.approx(0, abs=1e-12), "all weights together change nothing"


def test_the_interval_covers_the_mean_of_the_population():
    """300 samples of 150 rows: 95 % intervals of the mean over three classes hold the value of 200,000 rows."""
    rng = np.random.default_rng(0)

    def draw(n):
        has = rng.random((n, 3)) < (0.15, 0.3, 0.5)
        return has, rng.normal(size=(n, 3)) + has + rng.normal(size=(n, 1))  # rows are dependent across classes

    has, scores = draw(200_000)
    truth = np.mean([average_precision_score(has[:, k], scores[:, k]) for k in range(3)])
    covered = 0
    for _ in range(300):
        has, scores = draw(150)
        ranked = [rank_positives(scores[has[:, k], k], scores[:, k]) for k in range(3)]
        rows = sum(influence(ranked[k], scores[:, k], has[:, k]) for k in range(3))
        mean, (low, high) = mean_and_interval(np.array([each.average_precision() for each in ranked]), rows)
        assert low < mean < high
        covered += low <= truth <= high
    assert 0.91 < covered / 300 < 0.98


def test_an_interval_of_perfect_scores_has_a_width():
    has = np.array([True, True, False, False])
    ranked = rank_positives(np.array([3.0, 2.0]), np.array([3.0, 2.0, 1.0, 0.0]))
    mean, (low, high) = mean_and_interval(np.array([1.0]), influence(ranked, np.array([3.0, 2.0, 1.0, 0.0]), has))
    assert (mean, high) == (1, 1)
    assert 0.4 < low < 0.6


def test_rows_are_chosen_and_get_the_classes_above_theirs():
    sets = sets_of([[3], [], [1, 4], [4]], [7, 1, 7, 3])
    chosen = take_rows(sets, [3, 1, 2])
    assert (chosen.ends.tolist(), chosen.values.tolist(), chosen.known.tolist()) == ([0, 1, 1, 3], [4, 1, 4], [3, 1, 7])
    above = ((0,), (1, 0), (2,), (3, 2), (4, 1, 0))
    found = add_ancestors(sets, above)
    assert (found.ends.tolist(), found.values.tolist()) == ([0, 2, 2, 5, 8], [2, 3, 0, 1, 4, 0, 1, 4])
    assert add_ancestors(sets, tuple((label,) for label in range(5))) is sets
