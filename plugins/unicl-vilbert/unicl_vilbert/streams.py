"""The layers of ViLBERT: attention within a stream and between two streams, feed-forward, embedding of regions."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from unicl_bert.layers import EPS, Attention, FeedForward
from unicl_regions.boxes import Regions, pairwise_iou

OVERLAP = 0.4
"""The IoU above which a region would give a masked one away through the mean feature of `<IMG>`."""


class States(NamedTuple):
    """The last states of both streams: ``words`` (n, L, width), ``regions`` (n, 1 + R, width), `<IMG>` first."""

    words: Tensor
    regions: Tensor


class CoLayer(nn.Module):
    """Co-attention (section 3.1, Fig. 2b): both streams look at each other's input at the same time.

    Without ``crossed``, each stream looks at itself: the comparison of the experiments.
    """

    def __init__(
        self, widths: tuple[int, int], hidden: tuple[int, int], shared: int, heads: int, *, crossed: bool
    ) -> None:
        super().__init__()
        words, regions = widths
        self.crossed = crossed
        self.words = Attention(words, regions if crossed else words, shared, heads)
        self.regions = Attention(regions, words if crossed else regions, shared, heads)
        self.words_feed, self.regions_feed = FeedForward(words, hidden[0]), FeedForward(regions, hidden[1])

    def forward(self, words: Tensor, regions: Tensor, has_word: Tensor, has_region: Tensor) -> tuple[Tensor, Tensor]:
        """(n, L, width), (n, 1 + R, width), bool (n, L), bool (n, 1 + R) -> both streams."""
        if self.crossed:
            text, image = self.words(words, regions, has_region), self.regions(regions, words, has_word)
        else:
            text, image = self.words(words, words, has_word), self.regions(regions, regions, has_region)
        return self.words_feed(text), self.regions_feed(image)


class RegionEmbedding(nn.Module):
    """LayerNorm(Linear(feature) + Linear(box)), `<IMG>` first: the mean feature in the box of the whole image.

    With ``separate_norms``, each of the two has a LayerNorm of its own before the sum (LXMERT, EMNLP 2019, section
    2.1): features are often so much larger than boxes that a short training sees no places.
    """

    def __init__(self, inputs: int, width: int, *, separate_norms: bool) -> None:
        super().__init__()
        self.feature, self.box, self.norm = nn.Linear(inputs, width), nn.Linear(5, width), nn.LayerNorm(width, EPS)
        each = [nn.LayerNorm(width, EPS) if separate_norms else nn.Identity() for _ in range(2)]
        self.feature_norm, self.box_norm = each

    def forward(self, found: Regions, masked: Tensor, zeroed: Tensor) -> tuple[Tensor, Tensor]:
        """Return (b, 1 + R, width) and bool (b, 1 + R); ``masked`` and ``zeroed`` are bool (b, R).

        Masked regions and those that overlap one are not in the mean (the authors' multi-task code).
        """
        features, boxes = found.features.to(self.box.weight.dtype), found.boxes.to(self.box.weight.dtype)
        near = ((pairwise_iou(boxes, boxes) > OVERLAP) & masked[:, None]).any(2)
        counted = (found.there & ~masked & ~near)[..., None]
        mean = (features * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
        features = features.masked_fill(zeroed[..., None], 0)
        whole = boxes.new_tensor([0, 0, 1, 1, 1]).expand(len(boxes), 1, 5)
        seen = self.feature_norm(self.feature(torch.cat([mean, features], 1)))
        placed = self.box_norm(self.box(torch.cat([whole, boxes], 1)))
        return self.norm(seen + placed), torch.cat([torch.ones_like(found.there[:, :1]), found.there], 1)
