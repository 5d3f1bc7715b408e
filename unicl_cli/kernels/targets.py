"""Targets beyond one key: a part on the rows with the same text, the rest on the rows that share labels."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import NO_KEY, NO_LABEL
from unicl_cli.kernels.pairs import Pull, Side, group_keys

SAMPLED = 32
"""The rows of each rank from which the entropy of targets with several labels is estimated."""


class Target(NamedTuple):
    """The target of each of n rows: ``share`` of it on the rows with its text, the rest on the rows that share labels.

    With W_ij the summed weight of the labels that rows i and j share, and S_ij = 1 if their ``texts`` are equal, row i
    puts share_i S_ij / sum_j S_ij + (1 - share_i) W_ij / sum_j W_ij on row j. A row without labels has share 1, a row
    with NO_KEY in ``texts`` has share 0.

    Labels may come in ``groups``. A pair of an image that is not annotated for a group and a prompt of that group is
    neither positive nor negative: it is hidden in both softmaxes.
    """

    texts: Tensor  # (n,) int64
    share: Tensor  # (n,) float, in [0, 1]
    labels: Tensor  # (n, S) int64, NO_LABEL where a row has fewer
    weights: Tensor | None = None  # (classes,) float, at least 0; None: 1 each
    known: Tensor | None = None  # (n,) int64: bit g is set if the row is annotated for group g; None: no groups
    prompts: Tensor | None = None  # (n,) int64: the group of the class that the row's prompt names; -1 for a caption
    groups: int = 0  # at most 63: they are bits of one int64

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> "Target":
        """Return the target with ``change`` applied to each tensor that has the n rows."""
        known, prompts = (None if x is None else change(x) for x in (self.known, self.prompts))
        whole = self._replace(known=known, prompts=prompts)
        return whole._replace(texts=change(self.texts), share=change(self.share), labels=change(self.labels))


class Levels(NamedTuple):
    """The pulls of images and of texts under a target, and the entropy of the targets of this rank's first rows."""

    image: tuple[Pull, ...]
    text: tuple[Pull, ...]
    entropy: Tensor  # nats: of all rows where each has one label, else of the first `SAMPLED`


class _Entries(NamedTuple):
    """The labels of n rows as a list: entry e is that row ``item[e]`` has the label of ``key[e]``, by ``weight[e]``."""

    key: Tensor  # (E,) int64: a class and, where there are groups, the group of a prompt
    item: Tensor | None  # (E,) int64; None: one entry a row
    weight: Tensor  # (E,) float: 0 for a row without the label

    def add_up(self, values: Tensor, rows: int) -> Tensor:
        """Sum one value for each entry over each row, (E,) -> (rows,)."""
        if self.item is None:
            return values
        return values.new_zeros(rows).index_add_(0, self.item, values)

    def spread(self, values: Tensor) -> Tensor:
        """Return the value of the row of each entry, (rows,) -> (E,)."""
        return values if self.item is None else values[self.item]


def mask_target(target: Target, valid: Tensor) -> Target:
    """Return the target in which the rows that do not count have no text and no label."""
    return target._replace(
        texts=target.texts.masked_fill(~valid, NO_KEY),
        labels=target.labels.masked_fill(~valid[:, None], NO_LABEL),
        prompts=None if target.prompts is None else target.prompts.masked_fill(~valid, -1),
    )


def _entries(target: Target, dtype: torch.dtype, *, asked: bool) -> _Entries:
    """List the labels of rows as images, ``asked``, once for each group of prompts that the row knows, or as texts."""
    labels = target.labels
    rows = len(labels)
    has = labels != NO_LABEL
    weight = has.to(dtype)
    if target.weights is not None:
        weight = weight * target.weights.to(dtype)[labels.clamp(min=0)]
    key = labels.clamp(min=0) * (target.groups + 1)
    if target.known is not None and target.prompts is not None:
        if asked:  # captions, number 0, are known to all
            numbers = torch.arange(target.groups + 1, device=labels.device)
            known = (target.known[:, None] >> (numbers - 1).clamp(min=0)) & 1
            known[:, 0] = 1
            key, weight = key[..., None] + numbers, weight[..., None] * known[:, None].to(dtype)
        else:
            key = key + (target.prompts + 1)[:, None]
    key = key.masked_fill(weight == 0, NO_KEY)
    per_row = key[0].numel() if rows else 1
    item = None if per_row == 1 else torch.arange(rows, device=labels.device).repeat_interleave(per_row)
    return _Entries(key.reshape(-1), item, weight.reshape(-1))


def _count(keys: Tensor, among: Tensor) -> Tensor:
    """Count how often each key stands in ``among``: int64 (E,), (F,) -> (E,)."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)


def hide_unknown(mine: Target, everyone: Target, reads: Tensor, columns: int) -> tuple[Tensor, Tensor] | None:
    """Return the groups that each image lacks (b,) and the group of each text column (columns,), as bits.

    ``reads`` (B,): the column of each row of all ranks. Rows that share a column show the same prompt.
    """
    if mine.known is None or everyone.prompts is None:
        return None
    every = (1 << mine.groups) - 1
    bits = (1 << everyone.prompts.clamp(min=0)).masked_fill(everyone.prompts < 0, 0)
    of = torch.zeros(columns, dtype=torch.int64, device=reads.device).scatter_reduce_(0, reads, bits, "amax")
    return ~mine.known & every, of


def build_levels(mine: Target, everyone: Target, dtype: torch.dtype) -> Levels:
    """Return the pulls of this rank's b rows among the B rows of all ranks; both targets are masked.

    The text pulls of all ranks together are the sum of all targets of texts over images times logits, though each rank
    has only its own images.
    """
    rows, all_rows = len(mine.texts), len(everyone.texts)
    images, texts = _entries(mine, dtype, asked=True), _entries(everyone, dtype, asked=False)
    asking = _entries(everyone, dtype, asked=True) if mine.groups else texts
    row_group, text_group, sizes = group_keys(images.key, texts.key)
    totals = images.add_up(images.weight * sizes[row_group], rows).clamp(min=torch.finfo(dtype).tiny)
    heard = texts.add_up(texts.weight * _count(texts.key, asking.key), all_rows)
    rest, all_rest = 1 - mine.share.to(dtype), 1 - everyone.share.to(dtype)
    by_row = images.weight * images.spread(rest / totals)
    by_text = texts.spread(all_rest / heard.clamp(min=torch.finfo(dtype).tiny)).masked_fill(texts.weight == 0, 0)
    answers = Side(text_group, None, texts.item)
    label_pulls = (
        Pull(Side(row_group, by_row, images.item), answers, len(images.key)),
        Pull(Side(row_group, images.weight, images.item), answers._replace(weight=by_text), len(images.key)),
    )
    own_group, own_answers, own_sizes = group_keys(mine.texts, everyone.texts)
    shown, all_shown = mine.texts != NO_KEY, everyone.texts != NO_KEY
    fine = (mine.share.to(dtype) / own_sizes[own_group].clamp(min=1)).masked_fill(~shown, 0)
    all_fine = (everyone.share.to(dtype) / own_sizes[own_answers].clamp(min=1)).masked_fill(~all_shown, 0)
    text_pulls = (
        Pull(Side(own_group, fine), Side(own_answers), len(own_group)),
        Pull(Side(own_group, shown.to(dtype)), Side(own_answers, all_fine), len(own_group)),
    )
    image, text = zip(label_pulls, text_pulls, strict=True)
    if images.item is None:
        twins = group_keys(_pair(row_group, own_group), _pair(text_group, own_answers))
        both = twins[2][twins[0]]
        counts = (sizes[row_group] - both, by_row), (own_sizes[own_group] - both, fine), (both, by_row + fine)
        entropy = -torch.stack([count * torch.xlogy(q, q) for count, q in counts]).sum(0)
    else:
        q = _first_targets(images._replace(weight=by_row), row_group, texts, text_group, (rows, all_rows))
        q += fine[: len(q), None] * (mine.texts[: len(q), None] == everyone.texts)
        entropy = -torch.xlogy(q, q).sum(1)
    return Levels(image, text, entropy)


def _pair(a: Tensor, b: Tensor) -> Tensor:
    """Return one number for each pair of group numbers."""
    return a * (1 << 31) + b


def _first_targets(
    images: _Entries, row_group: Tensor, texts: _Entries, text_group: Tensor, sizes: tuple[int, int]
) -> Tensor:
    """Return the part of the first rows' targets that lies on labels: ``sizes`` = (b, B) -> (b or `SAMPLED`, B)."""
    mine, everyone = (torch.arange(size, device=row_group.device) for size in sizes)
    rows, of = min(SAMPLED, len(mine)), images.spread(mine)
    first = of < rows
    shares = images.weight.new_zeros(rows, len(row_group) + 1)
    shares.index_put_((of[first], row_group[first]), images.weight[first], accumulate=True)
    picked = shares.index_select(1, text_group)
    return shares.new_zeros(rows, len(everyone)).index_add_(1, texts.spread(everyone), picked)
