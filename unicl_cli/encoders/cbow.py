"""Text towers without a sequence: a bag of words, and one free vector a class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Cbow(nn.Module):
    """int64 (U, L) -> (U, width): the mean embedding of the tokens that are not padding (CLIP 2021, section 2.3)."""

    trim_safe = True

    def __init__(self, vocab_size: int, pad_id: int, width: int) -> None:
        super().__init__()
        self.width, self.pad_id = width, pad_id
        self.bag = nn.EmbeddingBag(vocab_size, width, mode="mean", padding_idx=pad_id)
        nn.init.normal_(self.bag.weight, std=width**-0.5)
        with torch.no_grad():
            self.bag.weight[pad_id].zero_()

    @property
    def units(self) -> Sequence[nn.Module]:
        return []

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bag(tokens)


class LabelEmbedding(nn.Module):
    """int64 (U, 1) class tokens -> (U, embed_dim), or (U, embed_dim + 1) whose last column is the class's bias.

    The "linear embedding layer" of UniCL's ablation (CVPR 2022, Table 3): already in the joint space, no projection.
    With a bias, without normalisation and at a fixed scale of 1 the image term is cross-entropy (section 3.2).
    """

    trim_safe = True
    joint = True

    def __init__(self, vocab_size: int, embed_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.width = embed_dim + bias
        self.biased = bias
        self.rows = nn.Embedding(vocab_size, self.width)
        nn.init.normal_(self.rows.weight, std=0.02)
        if bias:
            with torch.no_grad():
                self.rows.weight[:, -1].zero_()

    @property
    def units(self) -> Sequence[nn.Module]:
        return []

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows(tokens[:, 0])
