"""The probe against scikit-learn's optimum, and the choice of C on validation data alone."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from unicl_cli.evaluate.holdout import few_shot_mask, held_out_mask
from unicl_cli.evaluate.knn import neighbour_curve, vote_shares
from unicl_cli.evaluate.logistic_regression import (
    Linear,
    Point,
    RotatedData,
    Search,
    fit_classifiers,
    measure_classifiers,
    sweep,
)


def problem(n: int, d: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, num_classes, n)
    y[:num_classes] = np.arange(num_classes)
    x = rng.normal(size=(num_classes, d))[y] + 1.5 * rng.normal(size=(n, d)) * np.logspace(0, -1, d) + 3.0
    return torch.from_numpy(x), torch.from_numpy(y)


def objective(weights: np.ndarray, bias: np.ndarray, x: torch.Tensor, y: torch.Tensor, c: float) -> float:
    """scikit-learn's own objective for more than two classes, over n * C."""
    logits = x.numpy() @ weights + bias
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    cross_entropy = (log_sum - logits[np.arange(len(y)), y.numpy()]).mean()
    return cross_entropy + (weights**2).sum() / (2 * c * len(y))


def sklearn_fit(x: torch.Tensor, y: torch.Tensor, c: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x.numpy(), y.numpy())


@pytest.mark.parametrize(("n", "d"), [(300, 12), (40, 60)])
def test_float64_reaches_the_optimum_of_scikit_learn_at_every_strength(n, d):
    x, y = problem(n, d, 4)
    strengths = [1e-2, 1.0, 1e2]
    ours = fit_classifiers(x, y, strengths, 4, rtol=1e-12)
    for index, c in enumerate(strengths):
        theirs = sklearn_fit(x, y, c)
        best = objective(theirs.coef_.T, theirs.intercept_, x, y, c)
        assert objective(ours.weights[index].numpy(), ours.bias[index].numpy(), x, y, c) == pytest.approx(
            best, rel=1e-8
        )
        probabilities = ours.logits(x)[index].softmax(1).numpy()
        np.testing.assert_allclose(probabilities, theirs.predict_proba(x.numpy()), atol=1e-4)


@pytest.mark.parametrize(
    ("n", "d", "num_classes"),
    [(400, 16, 5), (40, 100, 4), (300, 8, 3)],
    ids=["plain", "fewer rows than features", "mixed"],
)
def test_at_every_strength_the_objective_is_within_a_millionth_of_the_optimum(n, d, num_classes):
    """scikit-learn's optimum where it reaches one in a second, else that of a fit a million times tighter."""
    x, y = problem(n, d, num_classes)
    strengths = [10.0**power for power in range(-6, 7, 2)]
    ours, tight = (
        fit_classifiers(x.float(), y, strengths, num_classes),
        fit_classifiers(x.float(), y, strengths, num_classes, rtol=1e-14),
    )
    for index, c in enumerate(strengths):
        best = objective(tight.weights[index].numpy(), tight.bias[index].numpy(), x.float().double(), y, c)
        got = objective(ours.weights[index].numpy(), ours.bias[index].numpy(), x.float().double(), y, c)
        assert got <= best * (1 + 1e-6)
        if c in (1e-2, 1.0, 1e2):
            theirs = sklearn_fit(x.float().double(), y, c)
            assert got <= objective(theirs.coef_.T, theirs.intercept_, x.float().double(), y, c) * (1 + 1e-6)


def test_many_classes_that_separate_at_once_do_not_strand_the_fit():
    """A first step too far leaves rows that are sure and wrong, where nothing has a curvature."""
    x, y = problem(300, 200, 60)
    ours, theirs = fit_classifiers(x, y, [1e2], 60), sklearn_fit(x, y, 1e2)
    best = objective(theirs.coef_.T, theirs.intercept_, x, y, 1e2)
    assert objective(ours.weights[0].numpy(), ours.bias[0].numpy(), x, y, 1e2) <= best * (1 + 1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_constant_and_repeated_features_change_nothing(scale):
    x, y = problem(120, 6, 3)
    more = torch.cat([x, x.new_full((120, 2), 7e3), x[:, :1]], 1) * scale
    ours = fit_classifiers(more, y, [1e-2, 1e4], 3, rtol=1e-12)
    for index, c in enumerate([1e-2, 1e4]):
        theirs = sklearn_fit(torch.cat([x, x[:, :1]], 1) * scale, y, c)
        expected = objective(theirs.coef_.T, theirs.intercept_, torch.cat([x, x[:, :1]], 1) * scale, y, c)
        assert objective(ours.weights[index].numpy(), ours.bias[index].numpy(), more, y, c) <= expected * (1 + 1e-6)


def test_two_classes_equal_the_single_sigmoid_of_scikit_learn():
    x, y = problem(200, 8, 2)
    ours = fit_classifiers(x, y, [0.1, 3.0], 2, rtol=1e-12)
    for index, c in enumerate([0.1, 3.0]):
        theirs = sklearn_fit(x, y, c)
        logits = ours.logits(x)[index]
        np.testing.assert_allclose(
            (logits[:, 1] - logits[:, 0]).numpy(), theirs.decision_function(x.numpy()), atol=1e-4
        )


def test_many_strengths_at_once_equal_one_at_a_time():
    x, y = problem(150, 10, 3)
    strengths = [1e-4, 0.3, 1e3]
    together = fit_classifiers(x, y, strengths, 3, rtol=1e-10)
    for index, c in enumerate(strengths):
        alone = fit_classifiers(x, y, [c], 3, rtol=1e-10)
        torch.testing.assert_close(together.logits(x)[index], alone.logits(x)[0], rtol=1e-3, atol=1e-3)


def test_rows_are_worked_in_chunks_without_changing_the_fit(monkeypatch):
    x, y = problem(200, 8, 3)
    whole = fit_classifiers(x, y, [1.0], 3, rtol=1e-10)
    monkeypatch.setattr("unicl_cli.evaluate.logistic_regression.KEPT_LOGITS", 50)
    cut = fit_classifiers(x, y, [1.0], 3, rtol=1e-10)
    torch.testing.assert_close(cut.weights, whole.weights, rtol=1e-4, atol=1e-5)


def test_a_class_without_training_rows_is_never_the_answer():
    x, y = problem(120, 6, 3)
    y[y == 1] = 0
    model = fit_classifiers(x, y, [10.0], 3)
    assert set(model.logits(x)[0].argmax(1).tolist()) == {0, 2}
    without = fit_classifiers(x, y // 2, [10.0], 2)
    torch.testing.assert_close(model.logits(x)[0][:, [0, 2]], without.logits(x)[0])
    (point,) = measure_classifiers(model, [10.0], x, torch.ones_like(y).index_fill(0, torch.arange(60), 0))
    assert np.isfinite(point.nll)


def test_scaling_the_features_is_another_strength():
    x, y = problem(150, 8, 3)
    plain, scaled = fit_classifiers(x, y, [4.0], 3, rtol=1e-12), fit_classifiers(2 * x, y, [1.0], 3, rtol=1e-12)
    torch.testing.assert_close(scaled.logits(2 * x), plain.logits(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(36, 64), (300, 40)])
def test_separable_features_are_fitted_in_few_evaluations_at_every_strength(n, d, monkeypatch):
    """In float32 the line search stalls on what is left of the loss: 17,000 evaluations."""
    torch.manual_seed(0)
    y = torch.arange(n) % 3
    x = 3 * torch.randn(3, d)[y] + 0.3 * torch.randn(n, d)
    asked: list[int] = []
    evaluate = RotatedData.at

    def counted(self, w, *more):
        asked.append(len(w))
        return evaluate(self, w, *more)

    monkeypatch.setattr(RotatedData, "at", counted)
    model = fit_classifiers(x, y, [10.0**power for power in range(-6, 7, 2)], 3)
    assert len(asked) < 100
    assert (model.logits(x).argmax(-1) == y).all(1)[2:].all()


@given(peak=st.integers(0, 96))
@settings(max_examples=50, deadline=None)
def test_the_sweep_finds_the_peak_of_any_unimodal_curve_in_at_most_fifteen_fits(peak):
    asked: list[float] = []

    def measure(strengths):
        asked.extend(strengths)
        return [Point(c, -abs(8 * (np.log10(c) + 6) - peak), 0.0) for c in strengths]

    curve = sweep(measure)
    best = max(curve, key=lambda point: point.sort_key)
    assert best.c == pytest.approx(10 ** (-6 + peak / 8))
    assert len(asked) == len(set(asked)) <= 15
    assert [point.c for point in curve] == sorted(asked)


def test_equal_accuracies_go_to_the_lower_nll_and_then_to_the_smaller_strength():
    assert Point(1.0, 0.9, 0.2).sort_key > Point(0.1, 0.9, 0.3).sort_key
    assert Point(0.1, 0.9, 0.2).sort_key > Point(1.0, 0.9, 0.2).sort_key
    flat = sweep(lambda strengths: [Point(c, 0.5, 1.0) for c in strengths])
    assert max(flat, key=lambda point: point.sort_key).c == pytest.approx(1e-6)


def test_measured_counts_hits_and_cross_entropy_of_each_strength():
    model = Linear(torch.stack([torch.eye(2), -torch.eye(2)]), torch.zeros(2, 2))
    x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 0, 0])
    right, wrong = measure_classifiers(model, [1.0, 2.0], x, y)
    assert (right.c, right.accuracy, wrong.accuracy) == (1.0, 0.75, 0.25)
    assert right.nll == pytest.approx(torch.nn.functional.cross_entropy(x, y).item())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_held_out_fifth_is_of_each_class_and_does_not_depend_on_the_order(labels, random):
    keys = [f"digits/{row}" for row in range(len(labels))]
    mask = held_out_mask(keys, labels)
    order = list(range(len(labels)))
    random.shuffle(order)
    assert [mask[row] for row in order] == held_out_mask([keys[row] for row in order], [labels[row] for row in order])
    for label in set(labels):
        own = [mask[row] for row in range(len(labels)) if labels[row] == label]
        assert sum(own) == (0 if len(own) == 1 else max(1, round(len(own) / 5)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 9), st.randoms())
@settings(max_examples=50, deadline=None)
def test_few_shots_are_nested_and_do_not_depend_on_the_order(labels, shots, seed, random):
    keys = [f"digits/{row}" for row in range(len(labels))]
    some, more = few_shot_mask(keys, labels, shots, seed), few_shot_mask(keys, labels, 2 * shots, seed)
    assert all(more[row] for row in range(len(keys)) if some[row])
    for label in set(labels):
        assert sum(some[row] for row in range(len(keys)) if labels[row] == label) == min(shots, labels.count(label))
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled = few_shot_mask([keys[row] for row in order], [labels[row] for row in order], shots, seed)
    assert [some[row] for row in order] == shuffled


def test_seeds_draw_other_shots():
    keys, labels = [str(row) for row in range(100)], [row % 2 for row in range(100)]
    assert len({tuple(few_shot_mask(keys, labels, 5, seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize("k", [1, 5, 20, 200])
def test_neighbours_are_those_of_scikit_learn(k, monkeypatch):
    x, y = problem(120, 8, 4)
    queries = x[:40] + 0.1
    unit = torch.nn.functional.normalize
    theirs = KNeighborsClassifier(min(k, 120), weights=lambda distances: np.exp((1 - distances**2 / 2) / 0.07)).fit(
        unit(x, dim=1), y
    )
    expected = theirs.predict_proba(unit(queries, dim=1))
    monkeypatch.setattr("unicl_cli.evaluate.knn.KEPT_COSINES", 1000)
    (shares,) = vote_shares(x, y, queries, [k], 4)
    np.testing.assert_allclose(shares.numpy(), expected, atol=1e-4)


def test_the_curve_over_neighbours_ends_at_the_number_of_rows():
    x, y = problem(30, 4, 3)
    curve = neighbour_curve(x, y, x, y, 3)
    assert [point.c for point in curve] == [1, 3, 5, 10, 20]
    assert curve[0].accuracy == 1.0


def overlapping(n: int, d: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return training and validation rows of classes that overlap: their best C lies inside the range."""
    x, y = problem(2 * n, d, num_classes)
    rng = np.random.default_rng(1)
    x = 0.3 * x + torch.from_numpy(rng.normal(size=(2 * n, d)))
    return x[:n].float(), y[:n], x[n:].float(), y[n:]


def test_the_search_answers_as_exact_fits_do_with_fewer_evaluations(monkeypatch):
    x, y, held_x, held_y = overlapping(400, 40, 6)
    asked: list[int] = []
    evaluate = RotatedData.at

    def counted(self, w, *more):
        asked.append(len(w))
        return evaluate(self, w, *more)

    monkeypatch.setattr(RotatedData, "at", counted)
    search = Search(x, y, 6)
    found = sweep(lambda cs: measure_classifiers(search.fit(cs), cs, held_x, held_y))
    quick = sum(asked)
    exact = measure_classifiers(
        fit_classifiers(x, y, [point.c for point in found], 6), [point.c for point in found], held_x, held_y
    )
    assert quick < (sum(asked) - quick) * 2 / 3
    for rough, fine in zip(found, exact, strict=True):
        assert abs(rough.accuracy - fine.accuracy) <= 2 / len(held_y)
        assert rough.nll == pytest.approx(fine.nll, rel=2e-2)
    best, optimum = (max(curve, key=lambda point: point.sort_key) for curve in (found, exact))
    assert abs(np.log10(best.c / optimum.c)) <= 0.5


def test_the_last_fit_is_the_optimum_wherever_it_starts():
    x, y, held_x, held_y = overlapping(300, 20, 5)
    y[y == 4] = 3  # the start knows one class less
    start = Search(x, y, 5).fit([0.1])
    whole_x, whole_y = torch.cat([x, held_x]), torch.cat([y, held_y])
    cold, warm = (fit_classifiers(whole_x, whole_y, [0.2], 5, start=begin) for begin in (None, start))
    torch.testing.assert_close(warm.logits(held_x).softmax(-1), cold.logits(held_x).softmax(-1), rtol=0, atol=1e-4)


def test_large_strengths_are_left_out_only_where_two_smaller_ones_are_worse_than_the_best():
    def curve_with_its_peak_at(c):
        return sweep(lambda strengths: [Point(each, -abs(np.log10(each / c)), 0.0) for each in strengths])

    assert max(point.c for point in curve_with_its_peak_at(1e-2)) == 1e2
    assert max(point.c for point in curve_with_its_peak_at(1e2)) == pytest.approx(1e6)


@pytest.mark.parametrize("rows", [30, 90])
def test_the_search_ends_on_separable_features(rows, monkeypatch):
    """In float32 nothing is left of the loss at large C: each fit has to notice it."""
    torch.manual_seed(0)
    y = torch.arange(rows) % 3
    x = 3 * torch.randn(3, 64)[y] + 0.3 * torch.randn(rows, 64)
    asked: list[int] = []
    evaluate = RotatedData.at
    monkeypatch.setattr(RotatedData, "at", lambda self, w, *more: asked.append(len(w)) or evaluate(self, w, *more))
    search = Search(x, y, 3)
    curve = sweep(lambda cs: measure_classifiers(search.fit(cs), cs, x, y))
    assert max(point.accuracy for point in curve) == 1.0
    assert sum(asked) < 1500
