"""The layers of BERT, which streams of other models share: attention, feed-forward, prediction."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import UniclError

EPS = 1e-12
"""Of every LayerNorm, as in BERT."""


class Attention(nn.Module):
    """Queries from ``x``, keys and values from ``y``; the residual is the queries' own stream (BERT; ViLBERT, Fig. 2).

    Keys have no bias: it shifts all scores of a query alike, so that the softmax cannot see it.
    """

    def __init__(self, width: int, other: int, shared: int, heads: int) -> None:
        super().__init__()
        if shared % heads:
            raise UniclError(f"attention: width {shared} is not a multiple of heads {heads}", "change one of them")
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


class Prediction(nn.Module):
    """Linear, GELU, norm: the states before a table of words or classes (BERT's head)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.norm = nn.Linear(width, width), nn.LayerNorm(width, EPS)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(F.gelu(self.transform(states)))
