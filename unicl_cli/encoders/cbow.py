"""A bag of words as text tower."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unicl_cli.tower_contracts import TowerTraits


class Cbow(nn.Module):
    """int64 (U, L) -> (U, width): the mean embedding of all tokens except padding (CLIP 2021, section 2.3)."""

    def __init__(self, vocab_size: int, pad_id: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.traits = TowerTraits(trim_safe=True, pad_id=pad_id)
        self.bag = nn.EmbeddingBag(vocab_size, width, mode="mean", padding_idx=pad_id)
        nn.init.normal_(self.bag.weight, std=width**-0.5)
        with torch.no_grad():
            self.bag.weight[pad_id].zero_()

    @property
    def units(self) -> Sequence[nn.Module]:
        return []

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bag(tokens)
