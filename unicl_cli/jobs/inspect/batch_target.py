"""The target of a real batch: the weight of each text for each image, and the pairs that are hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from unicl_cli import binding
from unicl_cli.contracts import NO_KEY, NO_LABEL, Batch, LabelSets
from unicl_cli.kernels.targets import Target, hide_named, hide_unknown
from unicl_cli.losses.unicl import UniCL
from unicl_cli.recipe.schema import Recipe

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
CELLS = 1 << 22
"""Pairs of an image and a text that are held at a time."""


def build_unicl(recipe: Recipe, label_sets: LabelSets | None, *, shows_captions: bool) -> UniCL:
    """Build the recipe's loss if that is `unicl`, else `unicl` with its defaults; both with the rows' texts alone."""
    part = recipe.loss if recipe.loss.name == "unicl" else binding.bind("losses", "unicl")
    context: dict[str, Callable[[], Any]] = {
        "label_sets": lambda: label_sets,
        "shows_captions": lambda: shows_captions,
        "hides_named": lambda: recipe.data.caption_labels == "hide",
        "class_prompts": lambda: None,
        "class_counts": lambda: None,
    }
    return cast("UniCL", binding.make("losses", part, context))


class BatchTarget:
    """The target of the images of n rows over their texts, as the loss `unicl` has it.

    ``batch`` has a row for each text (`UniCL.count_rows`). ``rows`` are those that count, int64 (n,); ``classes`` is
    the number of classes of the mix.
    """

    def __init__(self, loss: UniCL, batch: Batch, rows: Ints, classes: int) -> None:
        taken = torch.from_numpy(rows)
        found = loss.target_of(batch, torch.float64)
        self.keys: Ints = batch.keys[taken].numpy()
        self.reads = batch.text_index[taken] if loss.fold else torch.arange(len(rows))
        self.target = None if found is None else found.map_rows(lambda x: x[taken])
        if self.target is not None:
            self.has, self.text_labels = (
                _incidence(x, classes) for x in (self.target.labels, self.target.text_labels())
            )
            weights = self.target.weights
            self.weights = None if weights is None else weights.numpy().astype(np.float64)

    def positives(self, images: Ints) -> Mask:
        """Mark the texts on which the target of each image puts some weight, bool (k, n)."""
        if self.target is None:
            return self.keys[images, None] == self.keys
        share = self.target.share.numpy()[images, None]
        return ((share > 0) & self._same_text(self.target, images)) | ((share < 1) & (self._overlap(images) > 0))

    def shares(self, images: Ints) -> NDArray[np.float64]:
        """Return the target of each image over the texts, (k, n); each row has the sum 1."""
        if self.target is None:
            alike = self.positives(images).astype(np.float64)
            return alike / alike.sum(1, keepdims=True)
        share = self.target.share.numpy()[images, None]
        same, overlap = self._same_text(self.target, images).astype(np.float64), self._overlap(images)
        fine, coarse = (x / np.maximum(x.sum(1, keepdims=True), 1e-300) for x in (same, overlap))
        return share * fine + (1 - share) * coarse

    def hidden(self, images: Ints) -> Mask:
        """Mark the texts that are hidden from each image: prompts of unknown groups, captions that name it."""
        n = len(self.keys)
        if self.target is None:
            return np.zeros((len(images), n), np.bool_)
        hidden = np.zeros((len(images), n), np.bool_)
        unknown = hide_unknown(self.target, self.target, self.reads, int(self.reads.max()) + 1)
        if unknown is not None:
            hidden |= (unknown.rows.numpy()[images, None] & unknown.columns[self.reads].numpy()) != 0
        named = hide_named(self.target, self.target)
        if named is not None:
            for mine, theirs in zip(named[0].numpy(), named[1].numpy(), strict=True):
                hidden |= (mine[images, None] & theirs) != 0
        return hidden

    def chunks(self) -> Iterator[Ints]:
        """Yield all images, a few at a time."""
        n = len(self.keys)
        step = max(1, CELLS // n)
        return (np.arange(start, min(start + step, n)) for start in range(0, n, step))

    def _same_text(self, target: Target, images: Ints) -> Mask:
        texts: Ints = target.texts.numpy()
        return (texts[images, None] == texts) & (texts != NO_KEY)

    def _overlap(self, images: Ints) -> NDArray[np.float64]:
        """Return the summed weight of the labels of each image that each text says, (k, n)."""
        mine = self.has[images]
        if self.weights is not None:
            mine = mine.multiply(self.weights)
        return (mine @ self.text_labels.T).toarray()


def _incidence(labels: Tensor, classes: int) -> Any:
    """Return the classes of each row as a sparse matrix of ones, from int64 (n, S) with NO_LABEL."""
    return incidence_of([[label for label in row if label != NO_LABEL] for row in labels.tolist()], classes)


def incidence_of(sets: Sequence[Sequence[int]], classes: int) -> Any:
    """Return the classes of each row as a sparse matrix of ones, (n, classes)."""
    row = np.repeat(np.arange(len(sets)), [len(of) for of in sets])
    column = np.array([label for of in sets for label in of], np.int64)
    return csr_matrix((np.ones(len(row)), (row, column)), (len(sets), max(1, classes)))
