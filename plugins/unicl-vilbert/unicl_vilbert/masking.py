"""The random choices of ViLBERT besides BERT's masked words, each a function of (seed, draw): masked regions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from unicl_bert.masking import FIRST_FREE, SALT, uniform

from unicl_cli.api import Drawn, seed_of

ZEROED = 0.9
"""Of the chosen regions: features set to 0; the others are kept (ViLBERT, section 3.2)."""
REGIONS, CAPTION = FIRST_FREE, FIRST_FREE + 1
"""The streams of random numbers of a row."""


def row_seeds(drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor) -> dict[str, Tensor]:
    """Return ``seeds`` int64 (b,), of which all choices of a row are made: 32 bits of (seed, draw)."""
    del tokens, text_index
    return {"seeds": torch.tensor([seed_of(one.seed, one.draw, SALT) for one in drawn])}


def mask_regions(there: Tensor, seeds: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Choose ``share`` of the regions, bool (b, R): return those to be predicted and those of them that are zeroed."""
    draw = uniform(seeds, there.shape[1], REGIONS)
    chosen = there & (draw < share)
    return chosen, chosen & (draw < share * ZEROED)
