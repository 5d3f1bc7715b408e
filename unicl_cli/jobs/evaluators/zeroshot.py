"""The evaluator `zeroshot`: each row with a label against the names of all candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from unicl_cli.contracts import NO_LABEL
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.metrics import best_classes, calibration, target_ranks, ties_for_first
from unicl_cli.evaluate.tables import ONE_CANDIDATE, AnswerableClasses, classification_figures
from unicl_cli.inference.encoder import Encoder, check_finite
from unicl_cli.inference.scorer import Scorer, make_scorer, no_class_known, shorten_names
from unicl_cli.jobs.evaluators.candidates import Candidates, choose_candidates
from unicl_cli.jobs.evaluators.label_sets import (
    LabelledImages,
    label_set_figures,
    score_label_sets,
)
from unicl_cli.jobs.evaluators.options import Asked
from unicl_cli.jobs.evaluators.rows import limit_rows, read_labels

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, EvalRows, Need
    from unicl_cli.jobs.evaluators.kept import AnswerColumns, KeepAnswers, KeepPrecisions
    from unicl_cli.runs.thresholds import FoundThresholds

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
    """Accuracy, per class and per source, and calibration; average precision and more of rows with label sets.

    ``keep_answers`` takes the answer to each row. ``candidates`` are the classes to choose from: see
    `choose_candidates`; rows of a class that is not a candidate are left out. ``thresholds`` are for F1.
    """

    keep_answers: KeepAnswers | None = None
    candidates: Asked = "all"
    thresholds: FoundThresholds | None = None
    keep_precisions: KeepPrecisions | None = None
    takes_sets: bool = True

    @property
    def needs(self) -> Sequence[Need]:
        return ("labels", "scores")

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]:
        encoder = cast("Encoder", model)
        chosen = choose_candidates(corpus.classes, encoder.loaded.classes, self.candidates)
        scorer = restrict(make_scorer(encoder, chosen.classes, batch=batch), chosen.allowed)
        check_known(scorer, chosen, encoder.loaded.name)
        table, label = corpus.table(split, "labels"), f"{corpus.name} {split}"
        if table.has_sets:
            return self._measure_sets(encoder, corpus, split, scorer, chosen, batch=batch, limit=limit)
        labels = read_labels(table)
        rows, left_out = rows_to_answer(labels, chosen, label, limit)
        answers = answer_rows(encoder, scorer, table, rows, batch=batch, label=label)
        check_finite(answers.ranks >= 0, rows, table, f"{encoder.loaded.name} on {label}")
        figures, more = self._classify(corpus, split, scorer, chosen, answers, rows)
        warnings = [*chosen.warnings, *left_out, *more]
        return figures | {"warnings": warnings} if warnings else figures

    def _classify(
        self,
        corpus: EvalCorpus,
        split: str,
        scorer: Scorer,
        chosen: Candidates,
        answers: Answers,
        rows: Sequence[int],
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the metrics of answers to rows with one label each, and warnings."""
        table = corpus.table(split, "labels")
        if self.keep_answers is not None:
            known = [each.names[0] for each in chosen.classes]
            self.keep_answers(columns_of(answers, table, rows, known, (corpus.name, split)))
        targets, sources = read_labels(table)[torch.tensor(rows)], table.column("source").to_pylist()
        names = [each.names[0] for each in corpus.classes]
        answerable = count_candidates(scorer, chosen)
        figures = classification_figures(answers.ranks, targets, names, [sources[row] for row in rows], answerable)
        is_open = figures["top1"] is not None
        figures |= calibration(answers.confidence, answers.ranks == 0) if is_open else {}
        if is_open and len(scorer.first.unique()) < len(scorer.first):
            same = scorer.first[answers.top[:, 0]] == scorer.first[targets]
            figures["top1_any_of_identical"] = int(same.sum()) / len(same)
        absent = sum(chosen.allowed[: len(names)]) - len(figures["per_class"])
        warnings = [*warn_about_candidates(chosen, answerable, self.candidates), *scorer.warnings]
        return figures, [*warnings, *answer_warnings(answers, absent, len(names), split, is_open=is_open)]

    def _measure_sets(
        self,
        encoder: Encoder,
        corpus: EvalCorpus,
        split: str,
        scorer: Scorer,
        chosen: Candidates,
        *,
        batch: int,
        limit: int | None,
    ) -> dict[str, Any]:
        """Return the metrics of a split with label sets; also those of single labels if each row has one."""
        images = score_label_sets(encoder, scorer, chosen, corpus, split, batch=batch, limit=limit)
        figures = label_set_figures(images, corpus, split, self.thresholds, self.keep_precisions)
        warnings = [*chosen.warnings, *figures.pop("warnings", ())]
        labels = read_labels(corpus.table(split, "labels"))[torch.tensor(images.rows)]
        answered = torch.tensor(chosen.allowed)[labels.clamp(min=0)]
        if bool((labels != NO_LABEL).all()) and bool(answered.any()):
            answers = answer_features(images, labels, answered)
            rows = [row for row, kept in zip(images.rows, answered.tolist(), strict=True) if kept]
            single, more = self._classify(corpus, split, scorer, chosen, answers, rows)
            recalls = dict(zip(labels[answered].unique().tolist(), single.pop("per_class"), strict=True))
            add_recalls(figures["per_class"], images, recalls)
            figures |= single | {"n": figures["n"]}
        else:
            answerable = count_candidates(scorer, chosen)
            figures["candidates"] = answerable._asdict()
            others = warn_about_candidates(chosen, answerable, self.candidates) if answerable.total > 1 else []
            more = [*others, *scorer.warnings]  # a single class is a yes-or-no question: does the image have it?
        warnings += more
        return figures | {"warnings": warnings} if warnings else figures


def add_recalls(
    rows: Sequence[dict[str, Any]], images: LabelledImages, recalls: Mapping[int, Mapping[str, Any]]
) -> None:
    """Add the recall of each class, by its number, to its row, unless classes below it have images too."""
    labels = (images.wanted & (images.truth.positives > 0)).nonzero()[0].tolist()
    for label, row in zip(labels, rows, strict=True):
        if label in recalls and recalls[label]["n"] == row["n"]:
            row["recall"] = recalls[label]["recall"]


def restrict(scorer: Scorer, allowed: Sequence[bool]) -> Scorer:
    """Return the scorer with -inf for classes that are not candidates."""
    if all(allowed):
        return scorer
    hidden = ~torch.tensor(allowed)

    def classify(features: Tensor, classes: slice) -> Tensor:
        found = scorer.classify(features, classes)
        return found.masked_fill(hidden[classes].to(found.device), -torch.inf)

    return scorer._replace(classify=classify, known=scorer.known & ~hidden)


def check_known(scorer: Scorer, chosen: Candidates, model: str) -> None:
    """Raise UniclError if the model can answer no class of the corpus: every row would be wrong."""
    own = scorer.known[: chosen.in_corpus]
    if not bool(own.any()):
        raise no_class_known(model, [each.names[0] for each in chosen.classes[: chosen.in_corpus]])


def rows_to_answer(labels: Tensor, chosen: Candidates, label: str, limit: int | None) -> tuple[list[int], list[str]]:
    """Return the rows whose class is a candidate, at most ``limit``, and a warning about the others."""
    is_asked = torch.tensor(chosen.allowed[: chosen.in_corpus])[labels]
    rows = is_asked.nonzero().flatten().tolist()
    if not rows:
        raise UniclError(f"--candidates: no row of {label} has one of these classes", "add classes of its rows")
    left = int((~is_asked).sum())
    warnings = (
        [f"{left} of {len(labels)} rows are left out: their classes are not among the candidates"] if left else []
    )
    return limit_rows(rows, limit), warnings


def count_candidates(scorer: Scorer, chosen: Candidates) -> AnswerableClasses:
    """Count the classes that can be answered; if all of them have the same prompts, they are one."""
    known = scorer.known
    total = int(known.sum()) if len(scorer.first[known].unique()) > 1 else 1
    return AnswerableClasses(total, int(known[chosen.in_corpus :].sum()))


def warn_about_candidates(chosen: Candidates, found: AnswerableClasses, asked: Asked) -> list[str]:
    """Return the warnings about a single candidate, and about candidates that are not classes of the corpus."""
    if found.total == 1:
        more = "name others with --candidates a,b, or evaluate on a corpus with more classes"
        return [f"{ONE_CANDIDATE}, so there is no accuracy; {more}"]
    if not chosen.further:
        return []
    which = "is not a class" if found.not_in_corpus == 1 else "are not classes"
    warning = (
        f"{found.not_in_corpus} of {found.total} candidates {which} of the corpus: {shorten_names(chosen.further)}"
    )
    return [f"{warning}; --candidates corpus leaves them out" if asked == "all" else warning]


def answer_rows(
    encoder: Encoder, scorer: Scorer, table: EvalRows, rows: Sequence[int], *, batch: int, label: str
) -> Answers:
    """Classify ``rows`` of a table with labels."""
    targets = read_labels(table)[torch.tensor(rows)].to(encoder.device)

    def compute(images: Tensor, places: Tensor) -> Tensor:
        return pack_answers(scorer, scorer.scores(images), targets[places.to(encoder.device)])

    return unpack_answers(encoder.map_rows(table, rows, compute, batch=batch, label=label))


def answer_features(images: LabelledImages, labels: Tensor, answered: Tensor) -> Answers:
    """Classify the ``answered`` rows, bool (n,), of a split with label sets, each of which has one label, (n,).

    Classes above a row's own, and those of groups for which it is not annotated, are no answers to it.
    """
    groups, parts = images.group_numbers(), list[Tensor]()
    for part, scores in images.scores.by_rows(len(images.chosen.classes)):
        hidden = images.hidden(part, groups).scatter_(1, labels[part, None], value=False).to(scores.device)
        shown = scores.masked_fill(hidden, -torch.inf)
        parts.append(pack_answers(images.scores.scorer, shown, labels[part].to(scores.device)).cpu())
    return unpack_answers(torch.cat(parts)[answered])


def pack_answers(scorer: Scorer, scores: Tensor, true: Tensor) -> Tensor:
    """Answer by scores (b, C), given the true classes (b,); the result is one tensor, to be gathered over ranks."""
    confidence = scorer.probabilities(scores).amax(1)
    values, order = best_classes(scores, KEPT_CLASSES)
    whole = torch.stack([target_ranks(scores, true), ties_for_first(scores, true).long()], 1)
    return torch.cat([whole.float(), confidence[:, None], order.float(), values], 1)  # exact below 2^24


def unpack_answers(found: Tensor) -> Answers:
    """Return the answers in tensors that `pack_answers` made."""
    whole, confidence, rest = found[:, :2].long(), found[:, 2], found[:, 3:]
    kept = rest.shape[1] // 2
    return Answers(whole[:, 0], whole[:, 1], confidence, rest[:, :kept].long(), rest[:, kept:])


def columns_of(
    answers: Answers, table: EvalRows, rows: Sequence[int], names: Sequence[str], place: tuple[str, str]
) -> AnswerColumns:
    """Return the columns of `--predictions`; ``y`` and ``top`` are numbers of ``names``, the corpus's before others.

    ``rank`` 0 is a hit; ``place`` is the corpus and its split. A class that cannot be answered (its score is -inf) is
    not in ``top``.
    """
    keys, targets = table.column("key").to_pylist(), read_labels(table).tolist()
    counts = (answers.scores > -torch.inf).sum(1).tolist()
    top = [best[:n] for best, n in zip(answers.top.tolist(), counts, strict=True)]
    return {
        "data": [place[0]] * len(rows),
        "split": [place[1]] * len(rows),
        "key": [keys[row] for row in rows],
        "class": [names[targets[row]] for row in rows],
        "predicted": [names[best[0]] for best in top],
        "rank": answers.ranks.tolist(),
        "y": [targets[row] for row in rows],
        "top": top,
        "top_classes": [[names[label] for label in best] for best in top],
        "scores": [scores[:n] for scores, n in zip(answers.scores.tolist(), counts, strict=True)],
        "p_max": answers.confidence.tolist(),
        "correct": (answers.ranks == 0).tolist(),
    }


def answer_warnings(answers: Answers, absent: int, classes: int, split: str, *, is_open: bool) -> list[str]:
    """Return the warnings about ties and about ``absent`` classes, which have no row in the split."""
    warnings: list[str] = []
    share = float(answers.ties.double().mean())
    if is_open and share > MANY_TIES:
        warnings.append(f"{100 * share:.1f} % of the rows tie for the first place; the lowest class wins")
    if absent:
        warnings.append(f"{absent} of {classes} classes have no row in split {split}: left out of the mean per class")
    return warnings
