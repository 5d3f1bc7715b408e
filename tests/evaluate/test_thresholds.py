"""Thresholds: the logistic fit beside scikit-learn's, and cuts beside every other cut."""

import numpy as np
import pytest
from scored_sets import blocks_of, random_case, sets_of
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from unicl_cli.evaluate.annotations import Annotations
from unicl_cli.evaluate.thresholds import FEWEST, fit_logistic, fit_thresholds


@pytest.mark.parametrize(("seed", "shift", "factor"), [(0, 0.0, 1.0), (1, 0.3, 0.01), (2, -40.0, 5.0)])
def test_the_fit_is_the_logistic_regression_of_all_known_pairs(seed, shift, factor):
    """Platt's targets are shares: scikit-learn gets each pair twice, weighted."""
    scores, has, known, truth = random_case(seed)
    scores = ((scores + has) * factor + shift).astype(np.float32)
    found = fit_logistic(blocks_of(scores, 3), truth, np.ones(has.shape[1], bool))
    x, y = scores[known].astype(float), has[known]
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2)
    target = np.where(y, high, low)
    x = (x - shift) / factor
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000)
    model.fit(
        np.concatenate([x, x])[:, None],
        np.repeat([1, 0], len(x)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, constant = model.coef_[0, 0], model.intercept_[0]
    assert (found.pairs, found.positives) == (known.sum(), has.sum())
    assert found.scale * factor == pytest.approx(slope, rel=1e-5)
    assert found.bias + found.scale * shift == pytest.approx(constant, rel=1e-4, abs=1e-5)


def test_scores_that_separate_the_pairs_have_a_finite_fit():
    truth = Annotations(sets_of([[0], [], [0], []], [1] * 4), (0,))
    scores = np.array([[0.9], [0.1], [0.8], [0.2]], np.float32)
    found = fit_logistic(blocks_of(scores, 1), truth, np.ones(1, bool))
    assert 0 < found.scale < 100
    assert np.isfinite(found.bias)


def test_equal_scores_give_the_share_of_positives():
    truth = Annotations(sets_of([[0], [], [], []], [1] * 4), (0,))
    found = fit_logistic(blocks_of(np.full((4, 1), 0.3, np.float32), 1), truth, np.ones(1, bool))
    assert found.scale == 0
    assert 1 / (1 + np.exp(-found.bias)) == pytest.approx((2 / 3 + 3 / 5) / 4)


@pytest.mark.parametrize("seed", range(4))
def test_each_cut_has_the_largest_f1_that_its_class_can_have(seed):
    scores, has, known, truth = random_case(seed)
    scores = np.round(scores + has, 1).astype(np.float32)
    found = fit_thresholds(blocks_of(scores, 3), truth, np.ones(has.shape[1], bool))
    p = found.cut.probabilities(scores)
    assert found.own.tolist() == (has.sum(0) >= FEWEST).tolist()
    assert not found.own[-1]
    for label in range(has.shape[1]):
        own = known[:, label]
        if not found.own[label]:
            assert found.cut.thresholds[label] == found.common
            continue
        reached = f1_score(has[own, label], p[own, label] >= found.cut.thresholds[label])
        best = max(f1_score(has[own, label], p[own, label] >= cut) for cut in np.unique(p[own, label]))
        assert reached == pytest.approx(best, abs=1e-12)
    best = max(f1_score(has[known], p[known] >= cut) for cut in np.unique(p[known]))
    assert f1_score(has[known], p[known] >= found.common) == pytest.approx(best, abs=1e-12)


def test_classes_that_the_model_does_not_score_take_no_part():
    scores, has, _, truth = random_case(0)
    scores = scores.copy()
    scores[:, 1] = -np.inf
    wanted = np.arange(has.shape[1]) != 1
    found = fit_thresholds(blocks_of(scores, 3), truth, wanted)
    assert np.isfinite([found.cut.scale, found.cut.bias, *found.cut.thresholds]).all()
    assert not found.own[1]
    assert (found.cut.probabilities(scores[:, 1]) < found.cut.thresholds[1]).all()


def test_rows_without_any_positive_are_refused():
    truth = Annotations(sets_of([[], []], [1, 1]), (0,))
    with pytest.raises(ValueError, match="no class has a positive"):
        fit_thresholds(blocks_of(np.zeros((2, 1), np.float32), 1), truth, np.ones(1, bool))
