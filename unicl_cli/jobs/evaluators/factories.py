"""Factories of the built-in evaluators, group `unicl.evaluators`; each imports its module only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from unicl_cli.evaluator_contracts import FeaturePoint
from unicl_cli.jobs.evaluators.options import Count, Method, ProbeOptions, Strength, check_options

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import Evaluator
    from unicl_cli.jobs.evaluators.kept import KeepAnswers, KeepPrecisions, KeepRanks
    from unicl_cli.runs.thresholds import FoundThresholds


def zeroshot(
    *,
    candidates: Literal["all", "corpus"] | tuple[str, ...] = "all",
    keep_answers: KeepAnswers | None,
    keep_precisions: KeepPrecisions | None,
    thresholds: FoundThresholds | None,
) -> Evaluator:
    """Classification of the rows with labels by class names (or by the loss's own head or pair score).

    ``candidates``: the classes of the corpus and of the model, of the corpus alone, or those named.
    """
    from unicl_cli.jobs.evaluators.zeroshot import ZeroShotEvaluator

    return ZeroShotEvaluator(keep_answers, candidates, thresholds, keep_precisions)


def retrieval(*, keep_ranks: KeepRanks | None) -> Evaluator:
    """Image-to-text and text-to-image retrieval among the rows with texts."""
    from unicl_cli.jobs.evaluators.retrieval import RetrievalEvaluator

    return RetrievalEvaluator(keep_ranks)


def cross_modal() -> Evaluator:
    """Retrieval between images, texts and media of the same rows, and classification of each by class names."""
    from unicl_cli.jobs.evaluators.cross_modal import CrossModalEvaluator

    return CrossModalEvaluator()


def knn(*, k: Count = 20, features: FeaturePoint = "pre") -> Evaluator:
    """Accuracy of the k nearest training images, weighted by cosine: nothing is fitted (DINO, ICCV 2021)."""
    from unicl_cli.jobs.evaluators.knn import NeighbourEvaluator

    return NeighbourEvaluator(k, features)


def probe(
    *,
    features: FeaturePoint = "pre",
    method: Method = "logreg",
    normalize: bool = False,
    shots: tuple[Count, ...] = (),
    seeds: Count = 3,
    c: Strength | None = None,
) -> Evaluator:
    """A simple classifier on the image features: trained on split train, tested on the split that is evaluated."""
    from unicl_cli.jobs.evaluators.probe import ProbeEvaluator

    return ProbeEvaluator(check_options(ProbeOptions(features, method, normalize, shots, seeds, c)))


def loss() -> Evaluator:
    """The loss's own metrics on held-out rows: its method ``measure`` counts hits."""
    from unicl_cli.jobs.evaluators.loss_figures import LossFigures

    return LossFigures()
