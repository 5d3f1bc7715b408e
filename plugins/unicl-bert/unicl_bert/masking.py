"""Masked words: which are chosen, as a function of (seed, draw), and the loss of their prediction."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.api import at_least_float32, share_of_mean

SALT = 15
MASKED, RANDOM = 0.8, 0.1
"""Of the chosen words: replaced by the mask, by a random word; the others are kept (BERT, section 3.1)."""
WORDS, OTHERS, FIRST_FREE = 0, 1, 2
"""The streams of random numbers of a row; models that make more choices number theirs from ``FIRST_FREE`` on."""


class MaskedWords(NamedTuple):
    """``tokens`` int64 (b, L) as the model sees them; ``chosen`` bool (b, L), to be predicted."""

    tokens: Tensor
    chosen: Tensor


class Task(NamedTuple):
    """One task on a share: ``values`` are losses, ``hits`` bool, both of any shape and counted where ``valid``."""

    values: Tensor
    hits: Tensor
    valid: Tensor


def uniform(seeds: Tensor, count: int, stream: int) -> Tensor:
    """Return float32 (b, count) in [0, 1): number n of a row is a hash of its seed, so that no count changes another.

    ``seeds`` int64 (b,) has 32 random bits for each row. The hash is splitmix64's finaliser; int64 wraps, and shifts
    are cleared of the sign.
    """
    x = (seeds[:, None] << 31) + (torch.arange(count, device=seeds.device) << 3) + stream
    x = x * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return ((x >> 40) & ((1 << 24) - 1)).float() * 2.0**-24


def mask_words(tokens: Tensor, words: Tensor, seeds: Tensor, share: float, special: tuple[int, int]) -> MaskedWords:
    """Choose ``share`` of the ``words``, bool (b, L): 80 % become the mask, 10 % a random word, 10 % stay.

    ``special`` is the id of the mask and the number of words.
    """
    mask_id, vocabulary = special
    draw = uniform(seeds, tokens.shape[1], WORDS)
    chosen = words & (draw < share)
    other = (uniform(seeds, tokens.shape[1], OTHERS) * vocabulary).long()
    seen = torch.where(chosen & (draw < share * (MASKED + RANDOM)), other, tokens)
    return MaskedWords(seen.masked_fill(chosen & (draw < share * MASKED), mask_id), chosen)


def word_task(logits: Tensor, tokens: Tensor, chosen: Tensor) -> Task:
    """Return the cross-entropy of the masked words, (b, L), from logits (b, L, V)."""
    values = F.cross_entropy(at_least_float32(logits).transpose(1, 2), tokens, reduction="none")
    return Task(values, logits.argmax(-1) == tokens, chosen)


def sum_tasks(tasks: Mapping[str, Task], weights: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """Return ``loss``, the weighted sum of the global means of tasks, and each task's mean and accuracy by its name."""
    means = {name: share_of_mean(task.values.flatten(), task.valid.flatten()) for name, task in tasks.items()}
    right = {f"{n}_acc": share_of_mean(t.hits.flatten().float(), t.valid.flatten()) for n, t in tasks.items()}
    loss = torch.stack([mean if weights is None else weights[name] * mean for name, mean in means.items()]).sum()
    return {"loss": loss, **{name: value.detach() for name, value in (means | right).items()}}
