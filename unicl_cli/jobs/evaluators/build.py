"""Evaluators by name, and the check that a model and a corpus have what an evaluator needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from unicl_cli import binding
from unicl_cli.contracts import NO_LABEL
from unicl_cli.core.dist import bare
from unicl_cli.jobs.evaluators.kept import Keep
from unicl_cli.jobs.evaluators.rows import read_labels

if TYPE_CHECKING:
    from torch import nn

    from unicl_cli.contracts import Part
    from unicl_cli.evaluator_contracts import EvalCorpus, Evaluator
    from unicl_cli.tower_contracts import Tokenizer

DEFAULT_EVALUATORS = ("zeroshot", "retrieval")
NEEDS = {
    "labels": "rows with labels",
    "scores": "a model whose loss scores classes",
    "captions": "a model that reads captions",
    "figures": "a loss with metrics of its own",
}


def make_evaluator(part: str | Mapping[str, Any] | Part, keep: Keep | None = None) -> Evaluator:
    """Return the evaluator that ``part`` names: a name, ``{"name": …, option: …}``, or both as a Part.

    ``keep`` takes the answers of evaluators that classify, and the ranks of those that search; its
    ``thresholds`` are those for rows with label sets.
    """
    bound = binding.bind("evaluators", part)
    wanted = keep or Keep()
    context: dict[str, Callable[[], Any]] = {
        "keep_answers": lambda: wanted.answers,
        "keep_ranks": lambda: wanted.ranks,
        "keep_precisions": lambda: wanted.precisions,
        "thresholds": lambda: wanted.thresholds,
    }
    return cast("Evaluator", binding.make("evaluators", bound, context))


def missing_needs(
    evaluator: Evaluator, step: nn.Module, tokenizer: Tokenizer | None, corpus: EvalCorpus, split: str
) -> list[str]:
    """Return the needs of ``evaluator`` that the model or the split does not meet, in words."""
    loss: Any = bare(step).loss
    met = {
        "labels": "labels" in corpus.kinds(split),
        "scores": loss.score != "none",
        "captions": reads_captions(loss, tokenizer),
        "figures": hasattr(loss, "measure"),
    }
    missing = [NEEDS[need] for need in evaluator.needs if not met[need]]
    takes_sets = getattr(evaluator, "takes_sets", False)
    if "labels" in evaluator.needs and met["labels"] and not takes_sets and has_label_sets(corpus, split):
        missing.append("rows with one label each")
    return missing


def has_label_sets(corpus: EvalCorpus, split: str) -> bool:
    """Return True if a row with labels has several, or is annotated as having none: ``label`` says neither."""
    table = corpus.table(split, "labels")
    return table.has_sets and bool((read_labels(table) == NO_LABEL).any())


def reads_captions(loss: Any, tokenizer: Tokenizer | None) -> bool:
    """Return True if the model puts captions and images into one space, which a vocabulary of class names does not."""
    return loss.score == "text" and tokenizer is not None and tokenizer.context_length > 1
