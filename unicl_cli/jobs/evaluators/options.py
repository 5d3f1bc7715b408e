"""Options of the built-in evaluators, without torch."""

from typing import Annotated, Literal, NamedTuple

from annotated_types import Gt

from unicl_cli.contracts import FeaturePoint

Method = Literal["logreg", "knn"]
Count = Annotated[int, Gt(0)]


class ProbeOptions(NamedTuple):
    """Options of a probe.

    ``features`` come from before or after the projection, with unit length if ``normalize``. ``shots`` are numbers of
    training rows per class, each drawn ``seeds`` times; none means all rows of train.
    """

    features: FeaturePoint = "pre"
    method: Method = "logreg"
    normalize: bool = False
    shots: tuple[int, ...] = ()
    seeds: int = 3
