"""Scores of many images for many classes, block by block from the images' features: never all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unicl_cli.inference.scorer import ALL, Scorer

BLOCK = 1 << 21
"""Scores of a block."""
ROWS = 1 << 12
"""Images that are scored at once."""


class ClassScores(NamedTuple):
    """Scores of n images, whose ``features`` (n, D) `Scorer.encode` made, for the first ``classes`` classes."""

    scorer: Scorer
    features: Tensor
    classes: int
    device: torch.device

    def by_classes(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first class of each block and the scores of its classes, float32 (B, n)."""
        size = max(1, BLOCK // len(self.features))
        for start in range(0, self.classes, size):
            part = slice(start, min(start + size, self.classes))
            rows = [self.scorer.classify(own.to(self.device), part).T.cpu() for own in self.features.split(ROWS)]
            yield start, torch.cat(rows, 1).contiguous().numpy()

    def by_rows(self, classes: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield a slice of the images and their scores for all classes of the scorer, float32 (b, ``classes``)."""
        size = max(1, min(ROWS, BLOCK // classes))
        for start in range(0, len(self.features), size):
            part = slice(start, min(start + size, len(self.features)))
            yield part, self.scorer.classify(self.features[part].to(self.device), ALL).cpu()
