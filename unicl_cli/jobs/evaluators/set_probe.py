"""The probe of rows with label sets: one-vs-rest logistic regression on image features, chosen by mAP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.core.class_groups import groups_of
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.annotations import Annotations, join_sets, take_rows
from unicl_cli.evaluate.holdout import held_out_mask
from unicl_cli.evaluate.logistic_regression import Linear, Point, sweep
from unicl_cli.evaluate.one_vs_rest import ALWAYS, OneVsRest, search_measure
from unicl_cli.formats import count_of, plural
from unicl_cli.inference.class_scores import ClassScores
from unicl_cli.inference.scorer import Scorer, full_precision, identity
from unicl_cli.jobs.evaluators.candidates import Candidates
from unicl_cli.jobs.evaluators.label_sets import LabelledImages, label_set_figures
from unicl_cli.jobs.evaluators.options import ProbeOptions

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus


class SetExamples(NamedTuple):
    """Features (n, d) and labels of the rows with labels of a split, with their keys and numbers in the table."""

    features: Tensor
    truth: Annotations
    keys: list[str]
    rows: list[int]

    def only(self, mask: Sequence[bool]) -> SetExamples:
        """Return the examples for which ``mask`` is true."""
        places = [place for place, kept in enumerate(mask) if kept]
        truth = Annotations(take_rows(self.truth.sets, places), self.truth.groups.tolist())
        keys, rows = [self.keys[place] for place in places], [self.rows[place] for place in places]
        return SetExamples(self.features[torch.tensor(places, dtype=torch.int64)], truth, keys, rows)

    def joined(self, other: SetExamples) -> SetExamples:
        """Return these examples followed by the others."""
        sets = join_sets([self.truth.sets, other.truth.sets])
        features = torch.cat([self.features, other.features])
        truth = Annotations(sets, self.truth.groups.tolist())
        return SetExamples(features, truth, self.keys + other.keys, self.rows + other.rows)


class SetClassifier(NamedTuple):
    """A trained classifier, the C that was ``chosen`` from the ``curve``, and the rows that trained it."""

    linear: Linear
    chosen: float
    curve: list[Point]
    trained: SetExamples


def check_one_vs_rest(options: ProbeOptions, corpus: EvalCorpus) -> None:
    """Raise UniclError for options that take one label per row."""
    if options.method == "knn":
        asked = "--method knn"
    elif options.shots:
        asked = "--shots"
    else:
        return
    raise UniclError(
        f"{asked}: takes one label per row, but rows of {corpus.name} have label sets",
        "leave it out: logistic regression on all rows takes label sets",
    )


def split_examples(
    train: SetExamples, validation: SetExamples | None, corpus: EvalCorpus
) -> tuple[SetExamples, SetExamples, str]:
    """Return the examples to train on, those to validate on, and the source of the latter in words.

    Without validation rows a fifth of train validates, chosen by hash of the keys.
    """
    source = "val"
    if validation is None:
        mask = held_out_mask(train.keys, [0] * len(train.keys))
        train, validation, source = train.only([not held for held in mask]), train.only(mask), "a fifth of train"
    for part, words in ((train, "to train on"), (validation, f"to validate on ({source})")):
        if not part.truth.positives.any():
            raise UniclError(
                f"corpus {corpus.path}: no row {words} has a label", "use a corpus with more rows that have labels"
            )
    return train, validation, source


def train_one_vs_rest(
    train: SetExamples, validation: SetExamples, c: float | None, advance: Callable[[int], None]
) -> SetClassifier:
    """Fit a logistic regression for each class at ``c``, or at the C with the best mAP on the validation rows."""
    curve: list[Point] = []
    if c is None:
        search = OneVsRest(train.features, train.truth, torch.float32)
        curve = sweep(search_measure(search, validation.features, validation.truth, advance))
        c = max(curve, key=lambda point: point.sort_key).c
    whole = train.joined(validation)
    linear = OneVsRest(whole.features, whole.truth).fit([c])
    advance(1)
    return SetClassifier(linear, c, curve, whole)


def set_probe_figures(found: SetClassifier, test: SetExamples, corpus: EvalCorpus, split: str) -> dict[str, Any]:
    """Return the metrics on ``test``, as `unicl eval` has them, the chosen C and the validation curve."""
    weights, bias = found.linear.weights[0].float(), found.linear.bias[0].float()

    def classify(features: Tensor, classes: slice) -> Tensor:
        with full_precision(features):
            return features @ weights[:, classes] + bias[classes]

    count = len(corpus.classes)
    known = (bias > -torch.inf).cpu()
    first = torch.arange(count)
    scorer = Scorer(identity, classify, identity, sigmoid=True, cosines=False, first=first, known=known)
    chosen = Candidates(tuple(corpus.classes), (True,) * count, count)
    scores = ClassScores(scorer, test.features, count, test.features.device)
    images = LabelledImages(scores, test.truth, test.rows, chosen, groups_of(corpus.classes))
    figures = label_set_figures(images, corpus, split)
    figures["warnings"] = [*figures.get("warnings", ()), *warn_about_fits(found, test)]
    curve = [{"c": point.c, "val": point.accuracy} for point in found.curve]
    return figures | {"c": found.chosen, "curve": curve, "n_train": len(found.trained.keys)}


def warn_about_fits(found: SetClassifier, test: SetExamples) -> list[str]:
    """Return warnings about classes that could not be fitted, and about a C at the end of its range."""
    warnings: list[str] = []
    bias = found.linear.bias[0].cpu()
    tested = torch.from_numpy(test.truth.positives > 0)
    for marks, words in (
        ((bias == -torch.inf), "no training row"),
        (bias == ALWAYS, "only training rows that have it"),
    ):
        if count := int((marks & tested).sum()):
            classes = f"{count_of(count, 'class')} of the tested split {plural(count, 'has', 'have')}"
            warnings.append(f"{classes} {words}: all images score the same")
    if found.chosen in (1e-6, 1e6):
        warnings.append(f"C = {found.chosen:g} is at the end of the range that is searched")
    return warnings
