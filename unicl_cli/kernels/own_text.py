"""Targets on two levels: a part of each row's target on the rows with its own text, the rest on the rows of its key."""

from typing import NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import NO_KEY
from unicl_cli.kernels.pairs import Pull, group_keys


class OwnText(NamedTuple):
    """The finer level of a target, for each row.

    Row i puts ``share[i]`` of its target evenly on the rows whose ``keys`` equal its own, and the rest on the rows with
    an equal key of the coarser level. A row with NO_KEY has no text of its own, and its share must be 0.
    """

    keys: Tensor  # (n,) int64
    share: Tensor  # (n,) float, in [0, 1]


class Levels(NamedTuple):
    """The pulls of images and of texts under a target on two levels, and the entropy of each row's target."""

    image: tuple[Pull, ...]
    text: tuple[Pull, ...]
    entropy: Tensor  # (b,) nats: the lowest value of the row's image term


def two_levels(keys: Tensor, all_keys: Tensor, own: OwnText, all_own: OwnText) -> Levels:
    """Return the pulls of this rank's rows: int64 (b,) and (B,) keys, own texts of the b and of the B rows.

    q[i, j] = share[i] [own key of i = own key of j] / m[i] + (1 - share[i]) [key of i = key of j] / n[i] is the target
    of image i over texts, and q[j, i] that of text j over images; m and n count rows. The text pulls of all ranks have
    the sum of all q[j, i] times logits, though each has only its own images.
    """
    row_group, answer_group, sizes = group_keys(keys, all_keys)
    own_group, own_answer_group, own_sizes = group_keys(own.keys, all_own.keys)
    span = len(keys) + 1
    twin, _, twin_sizes = group_keys(row_group * span + own_group, answer_group * span + own_answer_group)
    valid, answers = keys != NO_KEY, all_keys != NO_KEY
    image: list[Pull] = []
    text: list[Pull] = []
    for mine, theirs, count, share, all_share in (
        (row_group, answer_group, sizes, 1 - own.share, 1 - all_own.share),
        (own_group, own_answer_group, own_sizes, own.share, all_own.share),
    ):
        of = count.clamp(min=1)
        image.append(Pull((share / of[mine]).masked_fill(~valid, 0), mine, theirs))
        text.append(Pull(valid.to(share.dtype), mine, theirs, (all_share / of[theirs]).masked_fill(~answers, 0)))
    coarse, fine = image[0].weight, image[1].weight
    n, m, both = sizes[row_group], own_sizes[own_group], twin_sizes[twin]
    entropy = torch.zeros_like(coarse)
    for count, q in ((n - both, coarse), (m - both, fine), (both, coarse + fine)):
        entropy -= count * torch.xlogy(q, q)
    return Levels(tuple(image), tuple(text), entropy)
