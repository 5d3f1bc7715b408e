"""The evaluator `retrieval`: images find their captions, and captions their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.evaluate.retrieval import recalls
from unicl_cli.jobs.evaluators.rows import limit_rows

if TYPE_CHECKING:
    from unicl_cli.contracts import EvalCorpus, EvalModel, Need


class RetrievalEvaluator(NamedTuple):
    """Recall at 1, 5 and 10 among all rows of the split that have texts, of whatever kind; empty if none has."""

    @property
    def needs(self) -> Sequence[Need]:
        return ("captions",)

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]:
        name = f"{corpus.name} {split}"
        captions = Captions()
        images: list[Tensor] = []
        for kind in corpus.kinds(split):
            table = corpus.table(split, kind)
            texts: list[list[str]] = table.column("texts").to_pylist()
            rows = limit_rows([row for row, own in enumerate(texts) if own], limit)
            if not rows:
                continue
            digests: list[bytes] = table.column("sha256").to_pylist()
            for row in rows:
                captions.add(texts[row], digests[row])
            images.append(model.encode_rows(table, rows, batch=batch, label=f"{name} images"))
        if not images:
            return {}
        features = model.encode_texts(list(captions.texts), batch=batch, label=f"{name} texts")
        return captions.figures(torch.cat(images), features)


class Captions:
    """The texts of images: each distinct text and image once, and the image of each caption."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.text_rows: list[int] = []
        self.image_of_text: list[int] = []
        self.contents: dict[bytes, int] = {}
        self.image_ids: list[int] = []

    def add(self, own: Sequence[str], digest: bytes) -> None:
        """Add the texts of the next image, whose bytes have this sha256."""
        self.text_rows += [self.texts.setdefault(text, len(self.texts)) for text in own]
        self.image_of_text += [len(self.image_ids)] * len(own)
        self.image_ids.append(self.contents.setdefault(digest, len(self.contents)))

    def figures(self, images: Tensor, texts: Tensor) -> dict[str, Any]:
        """Return the recalls for features of all images (N, D) and of the distinct texts (U, D), with warnings.

        ``repeated`` counts the images and the texts that are equal to an earlier one; these are hits for each other.
        """
        ids = torch.tensor(self.image_ids)
        figures = recalls(images, texts, torch.tensor(self.text_rows), torch.tensor(self.image_of_text), ids)
        warnings: list[str] = []
        if figures.pop("collapsed", False):
            warnings.append("collapsed: all images and texts score the same, so nothing is found")
        repeated = {
            "images": len(self.image_ids) - len(self.contents),
            "texts": len(self.text_rows) - len(self.texts),
        }
        if any(repeated.values()):
            figures["repeated"] = repeated
            warnings.append(
                f"{repeated['images']:,} of {len(self.image_ids):,} images and {repeated['texts']:,} of "
                f"{len(self.text_rows):,} captions repeat another: an equal image or caption counts as a hit"
            )
        return figures | {"warnings": warnings} if warnings else figures
