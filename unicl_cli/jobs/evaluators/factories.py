"""Factories of the built-in evaluators, group `unicl.evaluators`; each imports its module only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicl_cli.contracts import FeaturePoint
from unicl_cli.jobs.evaluators.options import Count, Method, ProbeOptions, Strength, check_options

if TYPE_CHECKING:
    from unicl_cli.contracts import Evaluator
    from unicl_cli.jobs.evaluators.zeroshot import KeepAnswers


def zeroshot(*, keep_answers: KeepAnswers | None) -> Evaluator:
    """Classification of the rows with labels by class names (or by the loss's own head or pair score)."""
    from unicl_cli.jobs.evaluators.zeroshot import ZeroShotEvaluator

    return ZeroShotEvaluator(keep_answers)


def retrieval() -> Evaluator:
    """Image-to-text and text-to-image retrieval among the rows with texts."""
    from unicl_cli.jobs.evaluators.retrieval import RetrievalEvaluator

    return RetrievalEvaluator()


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
