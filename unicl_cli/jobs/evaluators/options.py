"""Options of the built-in evaluators, without torch."""

from typing import Annotated, Literal, NamedTuple

from annotated_types import Gt

from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import FeaturePoint
from unicl_cli.jobs.zeroshot.classes import parse_classes

Asked = Literal["all", "corpus"] | tuple[str, ...]
"""Candidates: ``all`` (the classes of the corpus and of the model), ``corpus`` (its classes), or the classes named."""
Method = Literal["logreg", "knn"]
Count = Annotated[int, Gt(0)]
Strength = Annotated[float, Gt(0)]


class ProbeOptions(NamedTuple):
    """Options of a probe.

    ``features`` come from before or after the projection, with unit length if ``normalize``. ``shots`` are numbers of
    training rows per class, each drawn ``seeds`` times; none means all rows of train. ``c`` is scikit-learn's C of a
    single fit; None means the best one by validation.
    """

    features: FeaturePoint = "pre"
    method: Method = "logreg"
    normalize: bool = False
    shots: tuple[int, ...] = ()
    seeds: int = 3
    c: float | None = None


def parse_candidates(spec: str) -> Asked:
    """Return the value of ``--candidates``: all, corpus, or the names in ``a,b,"c, d"`` or ``@file``."""
    if spec in ("all", "corpus"):
        return "corpus" if spec == "corpus" else "all"
    try:
        return tuple(each.names[0] for each in parse_classes(spec).names)
    except UniclError as error:
        message, hint = (text.replace("--classes", "--candidates") for text in (error.message, error.hint or ""))
        raise UniclError(message, hint) from error


def check_options(options: ProbeOptions) -> ProbeOptions:
    """Return ``options``. Raises UniclError for a C that the method does not have."""
    if options.c is not None and options.method != "logreg":
        raise UniclError(f"c: method {options.method} has no C", "use method logreg, or leave c out")
    return options
