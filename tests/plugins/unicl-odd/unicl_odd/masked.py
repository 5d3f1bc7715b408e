"""Extra fields in the batch: one word of a text is masked in the loader and predicted by a head of the loss."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import NO_KEY, NO_TEXT, Batch, Drawn, Model, both_ways, gather, seed_of, share_of_mean

NOTHING = -100
SALT = 12


def mask_words(
    drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, pad_id: int, chance: float
) -> dict[str, Tensor]:
    """Return ``masked_tokens`` int64 (b, L) and ``word_target`` int64 (b,), NOTHING if no word is masked."""
    rows = tokens[text_index].clone()
    targets = torch.full([len(rows)], NOTHING)
    for n, one in enumerate(drawn):
        dice = torch.Generator().manual_seed(seed_of(one.seed, one.draw, SALT))
        coin, place = torch.rand(2, generator=dice).tolist()
        words = int((rows[n] != pad_id).sum()) - 2  # between start and end of text
        if text_index[n] != NO_TEXT and words > 0 and coin < chance:
            at = 1 + int(place * words)
            targets[n] = rows[n, at]
            rows[n, at] = pad_id
    return {"masked_tokens": rows, "word_target": targets}


class Masked(nn.Module):
    score, activation = "text", "softmax"

    def __init__(self, embed_dim: int, vocab_size: int, pad_id: int, chance: float) -> None:
        super().__init__()
        self.head = nn.Linear(embed_dim, vocab_size)
        self.extra = partial(mask_words, pad_id=pad_id, chance=chance)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        u = model.encode_image(batch.images).embed
        v = model.encode_text(batch.tokens).embed[batch.text_index]
        context = model.encode_text(batch.extra["masked_tokens"]).embed
        target = batch.extra["word_target"]
        valid = target != NOTHING
        guesses = F.cross_entropy(self.head(u + context), target.clamp(min=0), reduction="none")
        words = share_of_mean(guesses, valid)
        pairs = both_ways(u, v, batch.keys.masked_fill(batch.text_index == NO_TEXT, NO_KEY), model.scale())
        share = gather(valid).float().mean()
        return {"loss": pairs["loss"] + words, "loss_words": words.detach(), "masked": share}
