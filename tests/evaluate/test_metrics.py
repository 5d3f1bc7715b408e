"""Metrics against golden values, scipy, scikit-learn, and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from unicl_cli.evaluate.metrics import (
    NOT_FINITE,
    best_classes,
    calibration,
    mean_per_class,
    per_class,
    target_ranks,
    ties_for_first,
    top_k,
)
from unicl_cli.evaluate.statistics import mean_interval, wilson
from unicl_cli.evaluate.tables import classification_figures

small_scores = st.integers(1, 6).flatmap(
    lambda c: st.lists(
        st.tuples(st.lists(st.integers(-2, 2), min_size=c, max_size=c), st.integers(0, c - 1)), min_size=1
    )
)


@given(small_scores)
@settings(max_examples=50, deadline=None)
def test_the_rank_is_the_place_of_the_true_class_when_ties_stand_by_index(rows):
    scores = torch.tensor([row for row, _ in rows], dtype=torch.float32)
    targets = torch.tensor([target for _, target in rows])
    ranks = target_ranks(scores, targets)
    for (row, target), rank, tie in zip(rows, ranks.tolist(), ties_for_first(scores, targets).tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda label: (-row[label], label))
        assert order.index(target) == rank
        assert tie == (row[target] == max(row) and row.count(max(row)) > 1)
    assert torch.equal(ranks == 0, scores.argmax(1) == targets)


@given(small_scores, st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_the_best_classes_stand_by_score_and_then_by_index_and_are_at_most_all(rows, k):
    scores = torch.tensor([row for row, _ in rows], dtype=torch.float32)
    values, labels = best_classes(scores, k)
    for (row, _), got, value in zip(rows, labels.tolist(), values.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda label: (-row[label], label))[:k]
        assert got == order
        assert value == [row[label] for label in order]


def test_top_k_equals_scikit_learn_where_there_are_no_ties():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    ranks = target_ranks(torch.from_numpy(scores), torch.from_numpy(targets))
    for k in (1, 2, 5):
        assert top_k(ranks, k) == pytest.approx(top_k_accuracy_score(targets, scores, k=k, labels=range(7)))


def test_equal_scores_everywhere_give_the_share_of_the_first_class():
    targets = torch.tensor([0, 0, 1, 2])
    scores = torch.full((4, 3), 0.25)
    assert top_k(target_ranks(scores, targets), 1) == 0.5
    assert ties_for_first(scores, targets).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_marked_and_never_a_hit(bad):
    scores = torch.tensor([[0.1, 0.2], [bad, 0.0], [bad, bad]])
    ranks = target_ranks(scores, torch.tensor([1, 0, 0]))
    assert ranks.tolist() == [0, NOT_FINITE, NOT_FINITE]
    assert top_k(ranks, 5) == pytest.approx(1 / 3)


def test_a_class_that_cannot_be_answered_is_wrong_and_not_an_error():
    scores = torch.tensor([[0.5, -torch.inf, 0.2]])
    assert target_ranks(scores, torch.tensor([1])).tolist() == [2]


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_the_mean_per_class_is_the_golden_balanced_accuracy():
    """0.7222; recall_score(average="macro") and torchmetrics say 0.5417: they average in predicted-only classes."""
    targets, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 3, 2])
    got = mean_per_class(per_class(predicted == targets, targets, 4))
    assert got == pytest.approx(0.72222222)
    assert got == pytest.approx(balanced_accuracy_score(targets, predicted))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_counts_per_class_equal_a_loop(rows):
    targets, hits = torch.tensor([label for label, _ in rows]), torch.tensor([hit for _, hit in rows])
    counts = per_class(hits, targets, 5)
    assert counts.rows.tolist() == [sum(label == c for label, _ in rows) for c in range(5)]
    assert counts.hits.tolist() == [sum(label == c and hit for label, hit in rows) for c in range(5)]


def test_the_classification_of_a_split_names_what_it_measured():
    ranks, targets = torch.tensor([0, 1, 0, 5, 0]), torch.tensor([0, 0, 1, 2, 2])
    facts = classification_figures(ranks, targets, ["a", "b", "c", "d", "e", "f"], ["x", "y", "x", "y", "x"])
    assert facts["n"] == 5
    assert facts["classes"] == 6
    assert facts["top1"] == pytest.approx(0.6)
    assert facts["top5"] == pytest.approx(0.8)
    assert facts["mean_per_class"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert facts["per_class"] == [
        {"class": "a", "n": 2, "recall": 0.5},
        {"class": "b", "n": 1, "recall": 1.0},
        {"class": "c", "n": 2, "recall": 0.5},
    ]
    assert {source: row["top1"] for source, row in facts["per_source"].items()} == {"x": 1.0, "y": 0.0}
    assert facts["per_source"]["x"]["n"] == 3
    assert facts["top1_interval"] == list(wilson(3, 5))
    assert facts["top5_interval"] == list(wilson(4, 5))
    assert facts["mean_per_class_interval"] == list(mean_interval([1, 1, 1], [2, 1, 2]))


def test_top5_is_absent_where_it_cannot_be_missed():
    assert "top5" not in classification_figures(torch.tensor([0]), torch.tensor([0]), list("abcde"), ["x"])


def test_calibration_is_the_definition_in_loops_and_counts_each_row_once():
    draw = torch.Generator().manual_seed(0)
    confidence = torch.cat([torch.rand(500, generator=draw), torch.tensor([0.0, 1.0, 1 / 15, 2 / 15])]).double()
    hits = torch.rand(504, generator=draw) < confidence
    found = calibration(confidence, hits)
    bins: dict[int, list[int]] = {}
    for row, value in enumerate(confidence.tolist()):
        bins.setdefault(next(b for b in range(15) if value <= (b + 1) / 15), []).append(row)
    expected = sum(
        abs(sum(hits[rows].tolist()) / len(rows) - sum(confidence[rows].tolist()) / len(rows)) * len(rows) / 504
        for rows in bins.values()
    )
    assert found["ece"] == pytest.approx(expected, abs=1e-12)
    assert sum(entry["n"] for entry in found["reliability"]) == 504
    assert [entry["n"] for entry in found["reliability"]] == [len(bins[b]) for b in sorted(bins)]
    sure = calibration(torch.ones(4), torch.tensor([True, True, True, False]))
    assert sure == {
        "ece": 0.25,
        "reliability": [{"low": 14 / 15, "high": 1.0, "n": 4, "accuracy": 0.75, "confidence": 1.0}],
    }
