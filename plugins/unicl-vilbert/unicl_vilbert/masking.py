"""The random choices of ViLBERT: masked words, masked regions, wrong captions; each a function of (seed, draw)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unicl_cli.api import Drawn, seed_of

SALT = 15
MASKED, RANDOM = 0.8, 0.1
"""Of the chosen words: replaced by the mask, by a random word; the others are kept (BERT, section 3.1)."""
ZEROED = 0.9
"""Of the chosen regions: features set to 0; the others are kept (ViLBERT, section 3.2)."""
WORDS, OTHERS, REGIONS, CAPTION = 0, 1, 2, 3
"""The streams of random numbers of a row."""


class MaskedWords(NamedTuple):
    """``tokens`` int64 (b, L) as the model sees them; ``chosen`` bool (b, L), to be predicted."""

    tokens: Tensor
    chosen: Tensor


def draw_dice(drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor) -> dict[str, Tensor]:
    """Return ``dice`` int64 (b,), of which all choices of a row are made: 32 bits of (seed, draw)."""
    del tokens, text_index
    return {"dice": torch.tensor([seed_of(one.seed, one.draw, SALT) for one in drawn])}


def uniform(dice: Tensor, count: int, stream: int) -> Tensor:
    """Return float32 (b, count) in [0, 1): number n of a row is a hash of its dice, so that no count changes another.

    The hash is splitmix64's finaliser; int64 wraps, and shifts are cleared of the sign.
    """
    x = (dice[:, None] << 31) + (torch.arange(count, device=dice.device) << 3) + stream
    x = x * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return ((x >> 40) & ((1 << 24) - 1)).float() * 2.0**-24


def mask_words(tokens: Tensor, words: Tensor, dice: Tensor, share: float, special: tuple[int, int]) -> MaskedWords:
    """Choose ``share`` of the ``words``, bool (b, L): 80 % become the mask, 10 % a random word, 10 % stay.

    ``special`` is the id of the mask and the number of words.
    """
    mask_id, vocabulary = special
    draw = uniform(dice, tokens.shape[1], WORDS)
    chosen = words & (draw < share)
    other = (uniform(dice, tokens.shape[1], OTHERS) * vocabulary).long()
    seen = torch.where(chosen & (draw < share * (MASKED + RANDOM)), other, tokens)
    return MaskedWords(seen.masked_fill(chosen & (draw < share * MASKED), mask_id), chosen)


def mask_regions(there: Tensor, dice: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Choose ``share`` of the regions, bool (b, R): return those to be predicted and those of them that are zeroed."""
    draw = uniform(dice, there.shape[1], REGIONS)
    chosen = there & (draw < share)
    return chosen, chosen & (draw < share * ZEROED)
