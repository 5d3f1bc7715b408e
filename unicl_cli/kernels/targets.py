"""Targets beyond one key: a part on the rows with the same text, the rest on the rows that share labels."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import ALL_GROUPS, NO_KEY, NO_LABEL
from unicl_cli.kernels.pairs import Pull, Side, group_keys

SAMPLED = 32
"""The rows of each rank from which the entropy of targets with several labels is estimated."""


class Target(NamedTuple):
    """The target of each of n rows: ``share`` of it on the rows with its text, the rest on the rows that share labels.

    A caption says all labels of its row, a prompt only the class that it names. With W_ij the summed weight of the
    labels of image i that text j says, and S_ij = 1 if the ``texts`` of rows i and j are equal, image i puts
    share_i S_ij / sum_j S_ij + (1 - share_i) W_ij / sum_j W_ij on text j; a text does the same over the images. A row
    without labels has share 1, a row with NO_KEY in ``texts`` has share 0.

    Labels may come in ``groups``. A pair of an image that is not annotated for a group and a prompt of that group is
    neither positive nor negative: it is hidden in both softmaxes. An image is annotated for the groups of its labels.

    The prompts of all ``classes`` may stand beside the texts of the rows: for images alone, as texts that nobody shows.

    The caption of a row without labels may name classes. It is hidden from images of these classes, and its image from
    texts that say one of them.
    """

    texts: Tensor  # (n,) int64
    share: Tensor  # (n,) float, in [0, 1]
    labels: Tensor  # (n, S) int64, NO_LABEL where a row has fewer
    weights: Tensor | None = None  # (classes,) float, at least 0; None: 1 each
    shown: Tensor | None = None  # (n,) int64: the class that the row's prompt names, NO_LABEL without; None: no prompts
    known: Tensor | None = None  # (n,) int64: bit g is set if the image is annotated for group g
    groups: Tensor | None = None  # (classes,) int64: the group of each class, at most 62; None: no groups
    named: Tensor | None = None  # (n, N) int64: the classes that the caption of a row without labels names
    classes: Tensor | None = None  # (classes, D): the features of their prompts

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> "Target":
        """Return the target with ``change`` applied to each tensor that has the n rows."""
        shown, known, named = (None if x is None else change(x) for x in (self.shown, self.known, self.named))
        whole = self._replace(shown=shown, known=known, named=named)
        return whole._replace(texts=change(self.texts), share=change(self.share), labels=change(self.labels))

    def with_prompts(self, count: int) -> "Target":
        """Return the target with ``count`` more rows: number c shows the prompt of class c."""
        number = torch.arange(count, device=self.labels.device)

        def extend(x: Tensor, value: int) -> Tensor:
            return torch.cat([x, x.new_full((count, *x.shape[1:]), value)])

        labels = extend(self.labels, NO_LABEL)
        labels[-count:, 0] = number
        return self._replace(
            texts=extend(self.texts, NO_KEY),
            share=extend(self.share, 0),
            labels=labels,
            shown=None if self.shown is None else torch.cat([self.shown, number]),
            known=None if self.known is None else extend(self.known, 0),
            named=None if self.named is None else extend(self.named, NO_LABEL),
        )

    def said(self) -> Tensor:
        """Return the labels that each row's text says, (n, S) int64."""
        if self.shown is None:
            return self.labels
        alone = F.pad(self.shown[:, None], (0, self.labels.shape[1] - 1), value=NO_LABEL)
        return torch.where(self.shown[:, None] == NO_LABEL, self.labels, alone)


class Levels(NamedTuple):
    """The pulls of images and of texts under a target, and the entropies of the targets of this rank's first rows."""

    image: tuple[Pull, ...]
    text: tuple[Pull, ...]
    entropy: dict[str, Tensor]  # of images and of texts, in nats: all rows if each has one label, else `SAMPLED` rows


class _Entries(NamedTuple):
    """The labels of n rows as a list: entry e is that row ``item[e]`` has the label ``key[e]``, by ``weight[e]``."""

    key: Tensor  # (E,) int64: a class
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
        shown=None if target.shown is None else target.shown.masked_fill(~valid, NO_LABEL),
    )


def _entries(labels: Tensor, weights: Tensor | None, dtype: torch.dtype) -> _Entries:
    """List the labels of rows, (n, S) int64."""
    weight = (labels != NO_LABEL).to(dtype)
    if weights is not None:
        weight = weight * weights.to(dtype)[labels.clamp(min=0)]
    key = labels.masked_fill(weight == 0, NO_KEY)
    rows, most = labels.shape
    item = None if most == 1 else torch.arange(rows, device=labels.device).repeat_interleave(most)
    return _Entries(key.reshape(-1), item, weight.reshape(-1))


def _count(keys: Tensor, among: Tensor) -> Tensor:
    """Count how often each key stands in ``among``: int64 (E,), (F,) -> (E,)."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)


def hide_pairs(mine: Target, everyone: Target, reads: Tensor, columns: int) -> tuple[Tensor, Tensor] | None:
    """Return words of bits (W, b), (W, columns) of images and text columns: a common bit hides a pair; None: none."""
    found = [x for x in (_unknown_bits(mine, everyone, reads, columns), _named_bits(mine, everyone)) if x is not None]
    if not found:
        return None
    images, texts = zip(*found, strict=True)
    return torch.cat(images), torch.cat(texts)


def _named_bits(mine: Target, everyone: Target) -> tuple[Tensor, Tensor] | None:
    """Return a bit for each class that an image of this rank has and a caption names, or the other way round.

    Each row has a column of its own.
    """
    if mine.named is None or everyone.named is None:
        return None
    images = torch.cat([mine.labels, _mark(mine.named)], 1)
    texts = torch.cat([everyone.named, _mark(everyone.said())], 1)
    shared = texts[torch.isin(texts, images) & (texts != NO_LABEL)].unique()  # the number of words waits for a GPU
    words = len(shared) // 62 + 1

    def pack(items: Tensor) -> Tensor:
        place = torch.searchsorted(shared, items)
        is_shared = torch.isin(items, shared)
        bits = torch.zeros(len(items), words, dtype=torch.int64, device=items.device)
        place = place.masked_fill(~is_shared, 0)
        return bits.scatter_add_(1, place // 62, (1 << place % 62) * is_shared).T.contiguous()

    return pack(images), pack(texts)


def _mark(classes: Tensor) -> Tensor:
    """Return other numbers for classes, so that they equal only marked ones."""
    return torch.where(classes == NO_LABEL, NO_LABEL, classes + (1 << 32))


def _unknown_bits(mine: Target, everyone: Target, reads: Tensor, columns: int) -> tuple[Tensor, Tensor] | None:
    """Return the groups that each image lacks (1, b) and the group of each text column (1, columns), as bits.

    ``reads`` (B,): the column of each row of all ranks. Rows that share a column show the same prompt.
    """
    if mine.known is None or everyone.shown is None or mine.groups is None:
        return None
    bits = (1 << mine.groups[everyone.shown.clamp(min=0)]).masked_fill(everyone.shown == NO_LABEL, 0)
    of = torch.zeros(columns, dtype=torch.int64, device=reads.device).scatter_reduce_(0, reads, bits, "amax")
    return (~mine.known & ALL_GROUPS)[None], of[None]


def build_levels(mine: Target, everyone: Target, dtype: torch.dtype) -> Levels:
    """Return the pulls of this rank's b rows among the B rows of all ranks; both targets are masked.

    The text pulls of all ranks together are the sum of all targets of texts over images times logits, though each rank
    has only its own images.
    """
    rows, all_rows = len(mine.texts), len(everyone.texts)
    images, texts = _entries(mine.labels, mine.weights, dtype), _entries(everyone.said(), mine.weights, dtype)
    asking = texts if mine.shown is None else _entries(everyone.labels, mine.weights, dtype)
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
    if images.item is None:  # the targets of a row's image and of its text are alike
        twins = group_keys(_pair(row_group, own_group), _pair(text_group, own_answers))
        both = twins[2][twins[0]]
        counts = (sizes[row_group] - both, by_row), (own_sizes[own_group] - both, fine), (both, by_row + fine)
        entropy = -torch.stack([count * torch.xlogy(q, q) for count, q in counts]).sum(0)
        return Levels(image, text, {"image": entropy, "text": entropy})
    same = fine[:SAMPLED, None] * (mine.texts[:SAMPLED, None] == everyone.texts)
    spoken = _entries(mine.said(), mine.weights, dtype)
    entropies = {
        "image": _entropy(images, texts, mine, same),
        "text": _entropy(spoken, asking, mine, same),
    }
    return Levels(image, text, entropies)


def _entropy(rows: _Entries, answers: _Entries, mine: Target, same: Tensor) -> Tensor:
    """Return the entropy of the targets of the first rows; ``same`` (k, B) is the part on equal texts."""
    count, total = same.shape
    numbers = torch.arange(len(mine.texts), device=same.device)
    first = rows.spread(numbers) < count
    key, of, weight = rows.key[first], rows.spread(numbers)[first], rows.weight[first]
    group, theirs, _ = group_keys(key, answers.key)
    shared = same.new_zeros(count, len(key) + 1).index_put_((of, group), weight, accumulate=True)
    picked = shared.index_select(1, theirs) * (answers.weight > 0)
    w = same.new_zeros(count, total).index_add_(1, answers.spread(torch.arange(total, device=same.device)), picked)
    rest = (1 - mine.share[:count].to(same.dtype)) / w.sum(1).clamp(min=torch.finfo(same.dtype).tiny)
    q = same + rest[:, None] * w
    return -torch.xlogy(q, q).sum(1)


def _pair(a: Tensor, b: Tensor) -> Tensor:
    """Return one number for each pair of group numbers."""
    return a * (1 << 31) + b
