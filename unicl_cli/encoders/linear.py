"""One free vector per class instead of a text tower."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unicl_cli.tower_contracts import TowerTraits


class LabelEmbedding(nn.Module):
    """int64 (U, 1) class tokens -> (U, embed_dim), or (U, embed_dim + 1) whose last column is the bias of the class.

    The "linear embedding layer" of UniCL's ablation (CVPR 2022, Table 3), in the joint space without a projection.
    With a bias, without normalisation and with a fixed scale of 1, the image term is cross-entropy (section 3.2).
    """

    def __init__(self, vocab_size: int, embed_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.width = embed_dim + bias
        self.traits = TowerTraits(trim_safe=True, joint=True, biased=bias)
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
