"""A text tower that brings its own tokenizer: the bytes of a text."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bytes:
    """Texts -> int64 (n, longest): the first ``context_length`` bytes, each plus one; 0 pads."""

    vocab_size, pad_id, eot_id = 257, 0, 0

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = [torch.tensor([0, *(byte + 1 for byte in text.encode()[: self.context_length])][1:]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).long()


class Letters(nn.Module):
    """(U, L) -> (U, width): the mean of the letters' vectors behind one hidden layer."""

    units: Sequence[nn.Module] = ()

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.width, self.tokenizer = width, Bytes(length)
        self.table, self.hidden = nn.Embedding(257, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != 0)[..., None]
        mean = (self.table(tokens) * there).sum(1) / there.sum(1).clamp(min=1)
        return F.gelu(self.hidden(mean))
