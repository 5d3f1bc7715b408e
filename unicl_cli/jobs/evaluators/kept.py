"""Answers and ranks of single rows, which evaluators return in addition to their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from unicl_cli.evaluate.multilabel import Doubles
    from unicl_cli.evaluate.retrieval import Found
    from unicl_cli.runs.thresholds import FoundThresholds

AnswerColumns = Mapping[str, Sequence[Any]]
"""The answers to all rows with labels of a split: equally long columns by name."""
KeepAnswers = Callable[[AnswerColumns], None]
KeepRanks = Callable[["Found"], None]
KeepPrecisions = Callable[["tuple[Doubles, Doubles]"], None]
"""Takes the average precisions of the classes with a positive, and the influence of each row on their sum."""


class Keep(NamedTuple):
    """Functions that take the ``answers`` of a classification, the ``ranks`` of a retrieval, and ``precisions``.

    None: not wanted. ``thresholds`` are those by which rows with label sets are answered, for F1.
    """

    answers: KeepAnswers | None = None
    ranks: KeepRanks | None = None
    precisions: KeepPrecisions | None = None
    thresholds: FoundThresholds | None = None
