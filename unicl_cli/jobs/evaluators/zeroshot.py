"""The evaluator `zeroshot`: each row with a label against the names of all classes of the corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from unicl_cli.evaluate.metrics import best_classes, calibration, target_ranks, ties_for_first
from unicl_cli.evaluate.tables import classification_figures
from unicl_cli.inference.encoder import Encoder, check_finite
from unicl_cli.inference.scorer import Scorer, make_scorer
from unicl_cli.jobs.evaluators.rows import labels_of, limit_rows

if TYPE_CHECKING:
    from unicl_cli.contracts import EvalCorpus, EvalModel, EvalRows, Need

KeepAnswers = Callable[[Mapping[str, Any]], None]
"""A function that takes the answers to all rows of a split: equally long columns by name."""
KEPT_CLASSES = 5
MANY_TIES = 0.001


class Answers(NamedTuple):
    """Answers to n rows with labels."""

    ranks: Tensor
    """int64 (n,): rank of the true class, 0 = first."""
    ties: Tensor
    """int64 (n,): 1 if the true class ties for the first place."""
    confidence: Tensor
    """float32 (n,): probability of the first class."""
    top: Tensor
    """int64 (n, k): the best classes."""
    scores: Tensor
    """float32 (n, k): their scores."""


class ZeroShotEvaluator(NamedTuple):
    """Accuracy, per class and per source, and calibration; ``keep_answers`` takes the answer to each row."""

    keep_answers: KeepAnswers | None = None

    @property
    def needs(self) -> Sequence[Need]:
        return ("labels", "scores")

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]:
        encoder = cast("Encoder", model)
        scorer = make_scorer(encoder, corpus.classes, batch=batch)
        table, label = corpus.table(split, "labels"), f"{corpus.name} {split}"
        rows = limit_rows(range(len(table)), limit)
        answers = answer_rows(encoder, scorer, table, rows, batch=batch, label=label)
        check_finite(answers.ranks >= 0, rows, table, f"{encoder.loaded.name} on {label}")
        if self.keep_answers is not None:
            self.keep_answers(columns_of(answers, table, rows, corpus.name, split))
        targets, sources = labels_of(table)[torch.tensor(rows)], table.column("source").to_pylist()
        names = [each.names[0] for each in corpus.classes]
        figures = classification_figures(answers.ranks, targets, names, [sources[row] for row in rows])
        figures |= calibration(answers.confidence, answers.ranks == 0)
        if len(scorer.first.unique()) < len(names):
            same = scorer.first[answers.top[:, 0]] == scorer.first[targets]
            figures["top1_any_of_identical"] = int(same.sum()) / len(same)
        absent = len(names) - len(figures["per_class"])
        warnings = [*scorer.warnings, *answer_warnings(answers, absent, len(names), split)]
        return figures | {"warnings": warnings} if warnings else figures


def answer_rows(
    encoder: Encoder, scorer: Scorer, table: EvalRows, rows: Sequence[int], *, batch: int, label: str
) -> Answers:
    """Classify ``rows`` of a table with labels."""
    targets = labels_of(table)[torch.tensor(rows)].to(encoder.device)

    def compute(images: Tensor, places: Tensor) -> Tensor:
        scores, true = scorer.scores(images), targets[places.to(encoder.device)]
        confidence = scorer.probabilities(scores).amax(1)
        values, order = best_classes(scores, KEPT_CLASSES)
        whole = torch.stack([target_ranks(scores, true), ties_for_first(scores, true).long()], 1)
        return torch.cat([whole.float(), confidence[:, None], order.float(), values], 1)  # exact below 2^24

    found = encoder.map_rows(table, rows, compute, batch=batch, label=label)
    whole, confidence, rest = found[:, :2].long(), found[:, 2], found[:, 3:]
    kept = rest.shape[1] // 2
    return Answers(whole[:, 0], whole[:, 1], confidence, rest[:, :kept].long(), rest[:, kept:])


def columns_of(
    answers: Answers, table: EvalRows, rows: Sequence[int], corpus: str, split: str
) -> Mapping[str, Sequence[Any]]:
    """Return the columns of `--predictions`; ``y`` and ``top`` are class numbers."""
    keys, targets = table.column("key").to_pylist(), labels_of(table).tolist()
    return {
        "data": [corpus] * len(rows),
        "split": [split] * len(rows),
        "key": [keys[row] for row in rows],
        "y": [targets[row] for row in rows],
        "top": answers.top.tolist(),
        "scores": answers.scores.tolist(),
        "p_max": answers.confidence.tolist(),
        "correct": (answers.ranks == 0).tolist(),
    }


def answer_warnings(answers: Answers, absent: int, classes: int, split: str) -> list[str]:
    """Return the warnings about ties and about ``absent`` classes, which have no row in the split."""
    warnings: list[str] = []
    share = float(answers.ties.double().mean())
    if share > MANY_TIES:
        warnings.append(f"{100 * share:.1f} % of the rows tie for the first place; the lowest class wins")
    if absent:
        warnings.append(f"{absent} of {classes} classes have no row in split {split}: left out of the mean per class")
    return warnings
