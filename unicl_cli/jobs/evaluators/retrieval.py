"""The evaluator `retrieval`: images find their captions, and captions their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.evaluate.retrieval import Found, recalls, search
from unicl_cli.jobs.evaluators.rows import limit_rows

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, Need
    from unicl_cli.jobs.evaluators.kept import KeepRanks


class RetrievalEvaluator(NamedTuple):
    """Recall at 1, 5 and 10 among all rows of the split that have texts, of whatever kind; empty if none has.

    ``keep_ranks`` takes the ranks of all queries.
    """

    keep_ranks: KeepRanks | None = None

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
        found = captions.search(torch.cat(images), features)
        if self.keep_ranks is not None:
            self.keep_ranks(found)
        return captions.figures(found)


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

    def search(self, images: Tensor, texts: Tensor) -> Found:
        """Search in both directions, given the features of all images (N, D) and of the distinct texts (U, D)."""
        rows, owners, ids = (torch.tensor(of) for of in (self.text_rows, self.image_of_text, self.image_ids))
        return search(images, texts, rows, owners, ids)

    def figures(self, found: Found) -> dict[str, Any]:
        """Return the recalls, with warnings.

        ``repeated`` counts the images and the texts that are equal to an earlier one; these are hits for each other.
        """
        figures = recalls(found)
        warnings: list[str] = []
        if found.collapsed:
            warnings.append("collapsed: all images and texts score the same, so nothing is found")
        repeated = {
            "images": len(self.image_ids) - len(self.contents),
            "texts": len(self.text_rows) - len(self.texts),
        }
        if any(repeated.values()):
            figures["repeated"] = repeated
            totals = (("image", repeated["images"], self.image_ids), ("caption", repeated["texts"], self.text_rows))
            parts = [(name, f"{count:,} of {len(of):,} {name}s") for name, count, of in totals if count]
            kinds = " or ".join(name for name, _ in parts)
            said = " and ".join(part for _, part in parts)
            warnings.append(f"{said} repeat another: an equal {kinds} counts as a hit")
        return figures | {"warnings": warnings} if warnings else figures
