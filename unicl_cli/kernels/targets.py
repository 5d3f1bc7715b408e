"""Targets beyond one key: a part on the rows with the same text, the rest on the rows that share labels."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import ALL_GROUPS, MOST_GROUPS, NO_KEY, NO_LABEL
from unicl_cli.kernels.pairs import Unknown, group_keys
from unicl_cli.kernels.pulls import Pull, Side, make_bags

SAMPLED = 32
"""The rows of each rank from which the entropy of targets with several labels is estimated."""


class Target(NamedTuple):
    """The target of each of n rows: ``share`` of it on the rows with its text, the rest on the rows that share labels.

    A caption stands for all labels of its row, a prompt only for the class that it names. With W_ij the summed weight
    of the labels of image i that text j stands for, and S_ij = 1 if the ``texts`` of rows i and j are equal, image i
    puts share_i S_ij / sum_j S_ij + (1 - share_i) W_ij / sum_j W_ij on text j; a text does the same over the images. A
    row without labels has share 1, a row with NO_KEY in ``texts`` has share 0.

    Labels may come in ``groups``. A pair of an image that is not annotated for a group and a prompt of that group is
    neither positive nor negative: it is hidden in both softmaxes. An image is annotated for the groups of its labels.
    From an image without annotations (``known`` 0), that of a caption alone, nothing is hidden: it is its own class.

    The prompts of all ``classes`` may be added to the texts of the rows: for images alone, as texts that no row shows.

    The caption of a row without labels may name classes. It is hidden from images of these classes, and its image from
    texts that stand for one of them.
    """

    texts: Tensor  # (n,) int64
    share: Tensor  # (n,) float, in [0, 1]
    labels: Tensor  # (n, S) int64, NO_LABEL where a row has fewer
    weights: Tensor | None = None  # (classes,) float, at least 0; None: 1 each
    shown: Tensor | None = None  # (n,) int64: the class that the row's prompt names, NO_LABEL without; None: no prompts
    known: Tensor | None = None  # (n,) int64: bit g is set if the image is annotated for group g; 0: for none
    groups: Tensor | None = None  # (classes,) int64: the group of each class, below ``group_count``; None: no groups
    group_count: int = MOST_GROUPS
    named: Tensor | None = None  # (n, N) int64: the classes that the caption of a row without labels names
    classes: Tensor | None = None  # (classes, D): the features of their prompts

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> "Target":
        """Return the target with ``change`` applied to each tensor that has the n rows."""
        shown, known, named = (None if x is None else change(x) for x in (self.shown, self.known, self.named))
        whole = self._replace(shown=shown, known=known, named=named)
        return whole._replace(texts=change(self.texts), share=change(self.share), labels=change(self.labels))

    def with_prompts(self, count: int) -> "Target":
        """Return the target with ``count`` more rows, of texts alone: number c shows the prompt of class c."""
        rows = self.map_rows(lambda x: torch.cat([x, x.new_full((count, *x.shape[1:]), NO_LABEL)]))
        number = torch.arange(count, device=rows.labels.device)
        rows.share[-count:], rows.labels[-count:, 0] = 0, number
        if rows.shown is not None:
            rows.shown[-count:] = number
        return rows

    def text_labels(self) -> Tensor:
        """Return the labels that each row's text stands for, (n, S) int64."""
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
    """The labels of n rows, with their weights."""

    key: Tensor  # (n, S) int64: a class, or NO_KEY
    weight: Tensor  # (n, S) float: 0 at NO_KEY


class _Numbering(NamedTuple):
    """Numbers of the groups of all rows with a label, below ``groups``."""

    groups: int
    row: Tensor  # (b, S) int64: the group of each entry of this rank's images; ``groups`` without a label
    candidate: Tensor  # (B, S) int64: the same of the texts of all ranks


def mask_target(target: Target, valid: Tensor) -> Target:
    """Return the target in which the rows that do not count have no text and no label."""
    return target._replace(
        texts=target.texts.masked_fill(~valid, NO_KEY),
        labels=target.labels.masked_fill(~valid[:, None], NO_LABEL),
        shown=None if target.shown is None else target.shown.masked_fill(~valid, NO_LABEL),
    )


def _entries(labels: Tensor, weights: Tensor | None, dtype: torch.dtype) -> _Entries:
    """List the labels of rows, (n, S) int64; from ``len(weights)`` on they weigh 1."""
    weight = (labels != NO_LABEL).to(dtype)
    if weights is not None:
        weight = weight * F.pad(weights.to(dtype), (0, 1), value=1)[labels.clamp(0, len(weights))]
    return _Entries(labels.masked_fill(weight == 0, NO_KEY), weight)


def _count(keys: Tensor, among: Tensor, classes: int | None) -> Tensor:
    """Count how often each key occurs in ``among``, int64 of any shape; ``classes``: the keys are below it, or -1."""
    if classes is not None:
        places = among.reshape(-1) + 1
        counts = torch.zeros(classes + 1, dtype=torch.int64, device=keys.device)
        return counts.index_add_(0, places, torch.ones_like(places))[keys + 1]
    ordered = among.reshape(-1).sort().values
    return torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)


def _number(images: _Entries, texts: _Entries, classes: int | None) -> _Numbering:
    """Number the groups of rows with a label: classes by themselves, unless there are more of them than entries."""
    entries = images.key.numel()
    if classes is not None and classes <= entries:
        return _Numbering(classes, *(x.key.masked_fill(x.key == NO_KEY, classes) for x in (images, texts)))
    row, candidate, _ = group_keys(images.key.reshape(-1), texts.key.reshape(-1))
    found = (
        group.view_as(x.key).masked_fill(x.key == NO_KEY, entries) for group, x in ((row, images), (candidate, texts))
    )
    return _Numbering(entries, *found)


def hide_named(mine: Target, everyone: Target) -> tuple[Tensor, Tensor] | None:
    """Return a bit for each class that an image of this rank has and a caption names, or the other way round.

    They are in W words, (W, b) of the images and (W, B) of the texts of all ranks: each row has its own column.
    """
    if mine.named is None or everyone.named is None:
        return None
    # equal numbers hide a pair: c is a class of an image and of a caption, -2 - c the other way round; NO_LABEL stays
    images = torch.cat([mine.labels, -2 - mine.named], 1)
    texts = torch.cat([everyone.named, -2 - everyone.text_labels()], 1)
    shared = texts[torch.isin(texts, images) & (texts != NO_LABEL)].unique()  # the number of words waits for a GPU
    words = len(shared) // 62 + 1

    def pack(items: Tensor) -> Tensor:
        is_shared = torch.isin(items, shared)
        place = torch.searchsorted(shared, items).masked_fill(~is_shared, 0)
        bits = torch.zeros(len(items), words, dtype=torch.int64, device=items.device)
        return bits.scatter_add_(1, place // 62, (1 << place % 62) * is_shared).T.contiguous()

    return pack(images), pack(texts)


def hide_unknown(mine: Target, everyone: Target, reads: Tensor, columns: int) -> Unknown | None:
    """Return the groups that each image is not annotated for, and the group of each text column, as bits.

    ``reads`` (B,): the column of each row of all ranks. Rows that share a column show the same prompt.
    """
    if mine.known is None or everyone.shown is None or mine.groups is None:
        return None
    bits = (1 << mine.groups[everyone.shown.clamp(min=0)]).masked_fill(everyone.shown == NO_LABEL, 0)
    of = torch.zeros(columns, dtype=torch.int64, device=reads.device).scatter_reduce_(0, reads, bits, "amax")
    return Unknown((~mine.known & ALL_GROUPS).masked_fill(mine.known == 0, 0), of, mine.group_count)


def build_levels(mine: Target, everyone: Target, dtype: torch.dtype) -> Levels:
    """Return the pulls of this rank's b rows among the B rows of all ranks; both targets are masked.

    The text pulls of all ranks together are the sum of all targets of texts over images times logits, though each rank
    has only its own images.
    """
    images, texts = _entries(mine.labels, mine.weights, dtype), _entries(everyone.text_labels(), mine.weights, dtype)
    asking = texts if mine.shown is None else _entries(everyone.labels, mine.weights, dtype)
    classes, tiny = None if mine.weights is None else len(mine.weights), torch.finfo(dtype).tiny
    met = _count(images.key, texts.key, classes)
    totals = (images.weight * met).sum(1, keepdim=True).clamp(min=tiny)
    heard = (texts.weight * _count(texts.key, asking.key, classes)).sum(1, keepdim=True).clamp(min=tiny)
    rest, all_rest = 1 - mine.share.to(dtype)[:, None], 1 - everyone.share.to(dtype)[:, None]
    by_row, by_text = images.weight * (rest / totals), (all_rest / heard).masked_fill(texts.weight == 0, 0)
    number = _number(images, texts, classes)
    row = make_bags(number.row, by_row, number.groups)
    candidate = make_bags(number.candidate, (texts.weight > 0).to(dtype), number.groups)
    label_pulls = (
        Pull(row, candidate, number.groups),
        Pull(row._replace(weight=images.weight), candidate._replace(weight=by_text), number.groups),
    )
    own_group, own_candidates, own_sizes = group_keys(mine.texts, everyone.texts)
    shown, all_shown = mine.texts != NO_KEY, everyone.texts != NO_KEY
    fine = (mine.share.to(dtype) / own_sizes[own_group].clamp(min=1)).masked_fill(~shown, 0)
    all_fine = (everyone.share.to(dtype) / own_sizes[own_candidates].clamp(min=1)).masked_fill(~all_shown, 0)
    count = len(own_group)
    own = make_bags(own_group.masked_fill(~shown, count)[:, None], fine[:, None], count)
    candidates = make_bags(own_candidates.masked_fill(~all_shown, count)[:, None], all_shown.to(dtype)[:, None], count)
    text_pulls = (
        Pull(own, candidates, count),
        Pull(own._replace(weight=shown.to(dtype)[:, None]), candidates._replace(weight=all_fine[:, None]), count),
    )
    image, text = zip(label_pulls, text_pulls, strict=True)
    if images.key.shape[1] == 1:  # the targets of a row's image and of its text are alike
        twins = group_keys(_pair(number.row[:, 0], own_group), _pair(number.candidate[:, 0], own_candidates))
        both, met, by_row = twins[2][twins[0]], met[:, 0], by_row[:, 0]
        counts = (met - both, by_row), (own_sizes[own_group] - both, fine), (both, by_row + fine)
        entropy = -torch.stack([count * torch.xlogy(q, q) for count, q in counts]).sum(0)
        return Levels(image, text, {"image": entropy, "text": entropy})
    same = fine[:SAMPLED, None] * (mine.texts[:SAMPLED, None] == everyone.texts)
    rest, spoken = rest[:SAMPLED], _entries(mine.text_labels()[:SAMPLED], mine.weights, dtype)
    shared = shared_weights(_Entries(*(x[:SAMPLED] for x in images)), texts), shared_weights(spoken, asking)
    entropies = (entropy_of(same + rest * w / w.sum(1, keepdim=True).clamp(min=tiny)) for w in shared)
    return Levels(image, text, dict(zip(("image", "text"), entropies, strict=True)))


class OtherViews(NamedTuple):
    """The targets of views on the other views that share labels."""

    pull: tuple[Pull, ...]
    positives: Tensor  # (n,) bool: a view shares a label with another
    entropy: Tensor  # of this rank's first `SAMPLED` views, in nats


def build_other_views(
    labels: tuple[Tensor, Tensor], ids: tuple[Tensor, Tensor], weights: Tensor | None, dtype: torch.dtype
) -> OtherViews:
    """Return the targets of this rank's n views among the N of all ranks: W_ij / sum_j W_ij, j not i.

    W_ij is the summed weight of the labels that views i and j share. ``labels``: int64 (n, S), (N, S), NO_LABEL where a
    view has fewer; ``ids``: int64 (n,), (N,), another for each view. Labels from ``len(weights)`` on weigh 1.
    """
    mine, theirs = (_entries(x, weights, dtype) for x in labels)
    own, own_theirs, own_sizes = group_keys(*ids)
    number = _number(mine, theirs, None)
    others = _count(mine.key, theirs.key, None) - own_sizes[own][:, None]
    total = (mine.weight * others).sum(1)
    positives = total > 0
    share = total.clamp(min=torch.finfo(dtype).tiny).reciprocal().masked_fill(~positives, 0)
    candidates = make_bags(number.candidate, (theirs.weight > 0).to(dtype), number.groups)
    rows = make_bags(number.row, mine.weight * share[:, None], number.groups)
    without = Pull(Side(own, -mine.weight.sum(1) * share), Side(own_theirs), len(own))
    w = shared_weights(_Entries(*(x[:SAMPLED] for x in mine)), theirs)
    w = w.masked_fill(ids[0][:SAMPLED, None] == ids[1], 0)
    return OtherViews(
        (Pull(rows, candidates, number.groups), without), positives, entropy_of(share[:SAMPLED, None] * w)
    )


def shared_weights(rows: _Entries, candidates: _Entries) -> Tensor:
    """Return the summed weight of the labels that k rows share with B candidates, (k, B)."""
    key = rows.key.reshape(-1)
    group, theirs, _ = group_keys(key, candidates.key.reshape(-1))
    shared = rows.weight.new_zeros(len(rows.key), len(key) + 1)
    shared.scatter_add_(1, group.view_as(rows.key), rows.weight)
    theirs = theirs.view_as(candidates.key).masked_fill(candidates.weight == 0, len(key))
    return sum((shared.index_select(1, column) for column in theirs.unbind(1)), rows.weight.new_zeros(()))


def entropy_of(q: Tensor) -> Tensor:
    """Return the entropy of each row of targets, in nats."""
    return -torch.xlogy(q, q).sum(1)


def _pair(a: Tensor, b: Tensor) -> Tensor:
    """Return one number for each pair of group numbers."""
    return a * (1 << 31) + b
