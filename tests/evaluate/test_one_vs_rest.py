"""One-vs-rest logistic regression beside scikit-learn's, on the rows that are known."""

import numpy as np
import pytest
import torch
from scored_sets import random_case
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

from unicl_cli.evaluate import one_vs_rest
from unicl_cli.evaluate.logistic_regression import sweep
from unicl_cli.evaluate.one_vs_rest import ALWAYS, OneVsRest, search_measure

TOLERANCE = 1e-4
"""Largest difference of a weight: both minimise to a relative 1e-8 or so of the objective."""


def features_of(has, seed, width=6):
    rng = np.random.default_rng(seed)
    return (has @ rng.normal(size=(has.shape[1], width)) + rng.normal(size=(len(has), width)) * 2 + 3).astype(float)


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_each_class_is_scikit_learns_fit_on_its_known_rows(strength, monkeypatch):
    monkeypatch.setattr(one_vs_rest, "KEPT", 2 * 10 * 7 * 3 * 2)  # blocks of two or three classes
    _, has, known, truth = random_case(0, rows=80)
    x = features_of(has, 0)
    found = OneVsRest(torch.from_numpy(x), truth).fit([strength, 3.0])
    for label in range(has.shape[1] - 1):
        own = known[:, label]
        model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(x[own], has[own, label])
        np.testing.assert_allclose(found.weights[0, :, label], model.coef_[0], atol=TOLERANCE)
        np.testing.assert_allclose(found.bias[0, label], model.intercept_[0], atol=TOLERANCE * 10)
    assert found.bias[:, -1].tolist() == [-torch.inf] * 2, "no row has the last class"


def test_rows_that_know_everything_give_scikit_learns_one_vs_rest():
    _, has, _, truth = random_case(1, rows=80, groups=(0,) * 5)
    has[:, -1] = np.arange(80) % 4 == 0
    truth = type(truth)(_sets(has), (0,) * 5)
    x = features_of(has, 1)
    model = OneVsRestClassifier(LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)).fit(x, has.astype(int))
    found = OneVsRest(torch.from_numpy(x), truth).fit([1.0])
    np.testing.assert_allclose(found.logits(torch.from_numpy(x))[0], model.decision_function(x), atol=10 * TOLERANCE)


def _sets(has):
    from scored_sets import sets_of

    return sets_of([own.nonzero()[0].tolist() for own in has], [7] * len(has))


def test_a_class_that_every_known_row_has_is_always_answered():
    truth = type(random_case(0)[3])(_sets(np.array([[1, 1], [1, 0], [1, 1]])), (0, 0))
    found = OneVsRest(torch.randn(3, 2).double(), truth).fit([1.0])
    assert found.bias[0, 0] == ALWAYS
    assert found.weights[0, :, 0].tolist() == [0, 0]


def test_c_is_chosen_by_mean_average_precision():
    _, has, known, truth = random_case(2, rows=90)
    x = torch.from_numpy(features_of(has, 2))
    measure = search_measure(OneVsRest(x, truth, torch.float32), x, truth, lambda _: None)
    points = sweep(measure)
    assert len(points) > 7
    for point in points[:: len(points) // 2]:
        model = OneVsRest(x, truth).fit([point.c])
        scores = model.logits(x)[0].numpy()
        expected = np.mean(
            [average_precision_score(has[known[:, k], k], scores[known[:, k], k]) for k in range(has.shape[1] - 1)]
        )
        assert point.accuracy == pytest.approx(expected, abs=5e-3)
