"""The layers of ViLBERT: attention within a stream and between two streams, feed-forward, embedding of regions."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import UniclError

EPS = 1e-12
"""Of every LayerNorm, as in BERT."""
OVERLAP = 0.4
"""The IoU above which a region would give a masked one away through the mean feature of `<IMG>`."""


class Regions(NamedTuple):
    """R regions of each image. ``boxes`` are (x1 / W, y1 / H, x2 / W, y2 / H, area / (W H))."""

    features: Tensor
    """(b, R, F)."""
    boxes: Tensor
    """(b, R, 5)."""
    there: Tensor
    """bool (b, R): False for padding."""
    classes: Tensor | None = None
    """(b, R, K): their class distributions, where they come with the features."""


class States(NamedTuple):
    """The last states of both streams: ``words`` (n, L, width), ``regions`` (n, 1 + R, width), `<IMG>` first."""

    words: Tensor
    regions: Tensor


class Attention(nn.Module):
    """Queries from ``x``, keys and values from ``y``; the residual is the queries' own stream (BERT; ViLBERT, Fig. 2).

    Keys have no bias: it shifts all scores of a query alike, so that the softmax cannot see it.
    """

    def __init__(self, width: int, other: int, shared: int, heads: int) -> None:
        super().__init__()
        if shared % heads:
            raise UniclError(f"vilbert: width {shared} is not a multiple of heads {heads}", "change one of them")
        self.heads = heads
        self.query, self.value = nn.Linear(width, shared), nn.Linear(other, shared)
        self.key = nn.Linear(other, shared, bias=False)
        self.out, self.norm = nn.Linear(shared, width), nn.LayerNorm(width, EPS)

    def split(self, x: Tensor) -> Tensor:
        """(n, N, shared) -> (n, heads, N, shared / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, y: Tensor, there: Tensor) -> Tensor:
        """(n, N, width), (n, M, other), bool (n, M) -> (n, N, width)."""
        query, key, value = self.split(self.query(x)), self.split(self.key(y)), self.split(self.value(y))
        mixed = F.scaled_dot_product_attention(query, key, value, there[:, None, None])
        return self.norm(x + self.out(mixed.transpose(1, 2).flatten(2)))

    def weights(self, x: Tensor, y: Tensor, there: Tensor) -> Tensor:
        """Return the attention itself, (n, heads, N, M), for pictures."""
        query, key = self.split(self.query(x)), self.split(self.key(y))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return scores.masked_fill(~there[:, None, None], -torch.inf).softmax(-1)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Layer(nn.Module):
    """A layer of BERT: self-attention and feed-forward, each with residual and norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention, self.feed = Attention(width, width, width, heads), FeedForward(width, hidden)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        return self.feed(self.attention(x, x, there))


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
            told, seen = self.words(words, regions, has_region), self.regions(regions, words, has_word)
        else:
            told, seen = self.words(words, words, has_word), self.regions(regions, regions, has_region)
        return self.words_feed(told), self.regions_feed(seen)


class Prediction(nn.Module):
    """Linear, GELU, norm: the states before a table of words or classes (BERT's head)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.norm = nn.Linear(width, width), nn.LayerNorm(width, EPS)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(F.gelu(self.transform(states)))


class RegionEmbedding(nn.Module):
    """LayerNorm(Linear(feature) + Linear(box)), `<IMG>` first: the mean feature in the box of the whole image."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.feature, self.box, self.norm = nn.Linear(inputs, width), nn.Linear(5, width), nn.LayerNorm(width, EPS)

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
        x = self.feature(torch.cat([mean, features], 1)) + self.box(torch.cat([whole, boxes], 1))
        return self.norm(x), torch.cat([torch.ones_like(found.there[:, :1]), found.there], 1)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of (b, R, 4+) and (b, S, 4+) corners, (b, R, S); 0 beside an empty box."""
    one, two = boxes[..., None, :4], others[..., None, :, :4]
    sides = torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2])
    both = sides.clamp(min=0).prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (two[..., 2:] - two[..., :2]).prod(-1) - both
    return both / union.clamp(min=1e-12)
