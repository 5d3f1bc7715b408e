"""The evaluator `knn`: classification of image features by their nearest neighbours in split train, without a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unicl_cli.errors import UniclError
from unicl_cli.evaluate.knn import vote_shares
from unicl_cli.evaluate.tables import accuracy_figures
from unicl_cli.evaluator_contracts import FeaturePoint
from unicl_cli.jobs.evaluators.build import has_label_sets
from unicl_cli.jobs.evaluators.options import ProbeOptions
from unicl_cli.jobs.evaluators.probe import check_splits, encode_examples, warn_about_unseen

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, Need


class NeighbourEvaluator(NamedTuple):
    """Accuracy on the split that is evaluated of a vote of the ``k`` nearest images of split train.

    A neighbour at cosine s has exp(s / 0.07) votes. A ``k`` above the number of training rows is that number.
    """

    k: int = 20
    features: FeaturePoint = "pre"
    main: tuple[str, ...] = ("top1",)

    @property
    def needs(self) -> Sequence[Need]:
        return ("labels",)

    def check(self, corpus: EvalCorpus, split: str) -> None:
        """Raise UniclError for a corpus without neighbours to compare with."""
        check_splits(corpus, split)
        if has_label_sets(corpus, "train"):
            raise UniclError(
                f"corpus {corpus.path}: knn needs rows with one label each in split train",
                "use the evaluator probe, which takes several labels per row",
            )

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]:
        self.check(corpus, split)
        options = ProbeOptions(self.features)
        train, test = (
            encode_examples(model, corpus, split=of, options=options, batch=batch, limit=limit)
            for of in ("train", split)
        )
        (shares,) = vote_shares(train.features, train.targets, test.features, [self.k], len(corpus.classes))
        facts: dict[str, Any] = {
            "n": len(test.targets),
            "features": self.features,
            "k": min(self.k, len(train.targets)),
            "candidates": {"total": len(train.targets.unique()), "not_in_corpus": 0},
            **accuracy_figures(shares.argmax(1) == test.targets),
            "n_train": len(train.targets),
        }
        warnings = warn_about_unseen(train, test)
        return facts | {"warnings": warnings} if warnings else facts
