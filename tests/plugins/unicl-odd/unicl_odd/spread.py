"""An evaluator of image features alone: their similarity within a class and over all classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unicl_cli.api import EvalCorpus, EvalModel, Evaluator


class Spread(NamedTuple):
    skip: int
    needs: Sequence[str] = ("labels",)

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, object]:
        import torch

        table = corpus.table(split, "labels")
        rows = range(self.skip, len(table))[:limit]
        features = model.encode_rows(table, rows, batch=batch, label=f"{corpus.name} {split}")
        labels = torch.tensor(table.column("label").to_pylist())[torch.tensor(rows)]
        same = labels[:, None] == labels[None]
        cosines = features @ features.T
        figures = {"n": len(rows), "within_class": float(cosines[same].mean()), "overall": float(cosines.mean())}
        return figures | {"warnings": [f"the first {self.skip} rows are skipped"] if self.skip else []}


def build_spread(*, skip: int = 0) -> Evaluator:
    """Mean cosine of the image features within a class and over all classes."""
    return Spread(skip)


def build_nothing() -> Evaluator:
    """Measures only models that read captions, and finds a figure that JSON cannot hold."""
    return Nothing()


class Nothing:
    needs = ("captions",)

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, object]:
        return {"nothing": float("nan")}
