"""The positives of rows as groups that rows and candidates share, and their sums ("pulls"): no matrix of pairs."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDE = 1024
"""Rows copied at once where rows are picked by index."""


def cut(length: int, size: int = STRIDE) -> Iterator[slice]:
    """Yield slices of ``size`` that cover ``length``."""
    return (slice(start, start + size) for start in range(0, length, size))


def _add(out: Tensor, to: Tensor, x: Tensor, of: Tensor, weight: Tensor | None) -> Tensor:
    """Add ``weight[j] * x[of[j]]`` to ``out[to[j]]`` for all j, without copying all picked rows at once."""
    for part in cut(len(to)):
        rows = x.index_select(0, of[part]).to(out.dtype)  # a third of the time of x[of[part]]
        if weight is not None:
            rows.mul_(weight[part, None])
        out.index_add_(0, to[part], rows)
    return out


class SumShape(NamedTuple):
    """The number of groups and the type of their sums."""

    groups: int
    dtype: torch.dtype


class Side(NamedTuple):
    """Items in one group each: item i is in group ``group[i]`` and counts ``weight[i]`` times."""

    group: Tensor  # (n,) int64: the number of groups where the other side has no such group
    weight: Tensor | None = None  # (n,) float; None: 1 each

    def sum_groups(self, x: Tensor, reads: Tensor, out: SumShape, strength: Tensor | None = None) -> Tensor:
        """Return the sums of ``strength[i] * x[reads[i]]`` over the items i of each group: (groups + 1, D)."""
        groups = torch.zeros(out.groups + 1, x.shape[1], dtype=out.dtype, device=x.device)
        return _add(groups, self.group, x, reads, self._weight(strength))

    def multiply(self, groups: Tensor, q: Tensor, part: slice) -> Tensor:
        """Return the product of the rows ``q``, which are the items of ``part``, with their groups: (rows,)."""
        products = groups.index_select(0, self.group[part]).mul_(q).sum(1)
        return products if self.weight is None else products.mul_(self.weight[part])

    def add_items(self, out: Tensor, to: Tensor, groups: Tensor, strength: Tensor | None = None) -> None:
        """Add ``strength[i]`` times the group of item i to ``out[to[i]]``."""
        _add(out, to, groups, self.group, self._weight(strength))

    def _weight(self, strength: Tensor | None) -> Tensor | None:
        if strength is None or self.weight is None:
            return self.weight if strength is None else strength
        return strength * self.weight


class Bags(NamedTuple):
    """Items in S groups each, with the methods of `Side`: item i is in ``group[i, s]``, counts ``weight[i, s]`` times.

    An item in fewer groups has the number of groups in place of the rest, and weight 0 there.
    """

    group: Tensor  # (n, S) int64
    weight: Tensor  # (n, S) float
    order: Tensor  # (n * S,) int64: the entries by group
    starts: Tensor  # (groups + 1,) int64: the place of each group's first entry in this order

    def sum_groups(self, x: Tensor, reads: Tensor, out: SumShape, strength: Tensor | None = None) -> Tensor:
        item = self.order.div(self.group.shape[1], rounding_mode="floor")
        # items in no group have weight 0: they all read one row, which is then in the cache
        item.masked_fill_(torch.arange(len(item), device=item.device) >= self.starts[-1], 0)
        weight = self.weight.reshape(-1)[self.order]
        if strength is not None:
            weight.mul_(strength[item])
        read = reads[item]
        del item  # the sums take the most memory
        return F.embedding_bag(read, x.to(out.dtype), self.starts, per_sample_weights=weight, mode="sum")

    def multiply(self, groups: Tensor, q: Tensor, part: slice) -> Tensor:
        return self._items(groups, part).mul_(q).sum(1)

    def add_items(self, out: Tensor, to: Tensor, groups: Tensor, strength: Tensor | None = None) -> None:
        for part in cut(len(to)):
            items = self._items(groups, part)
            if strength is not None:
                items.mul_(strength[part, None])
            out.index_add_(0, to[part], items)

    def _items(self, groups: Tensor, part: slice) -> Tensor:
        """Return the sum of the groups of each item of ``part``, (items, D)."""
        return F.embedding_bag(self.group[part], groups, per_sample_weights=self.weight[part], mode="sum")


def make_bags(group: Tensor, weight: Tensor, groups: int) -> Bags:
    """Sort the entries of items by group: (n, S) int64 groups, (n, S) weights."""
    ordered, order = group.reshape(-1).sort(stable=True)
    return Bags(group, weight, order, torch.searchsorted(ordered, torch.arange(groups + 1, device=group.device)))


class Pull(NamedTuple):
    """For each row, the weighted sum over its groups of the weighted sums of the columns that their candidates read."""

    rows: Side | Bags
    candidates: Side | Bags
    groups: int


def _feature_slices(q: Tensor, pull: Pull) -> Iterator[slice]:
    """Cut the features so that the sums of all groups need no more memory than ``q``."""
    return cut(q.shape[1], max(1, q.numel() // (pull.groups + 1)) if pull.groups > len(q) else q.shape[1])


def pull_sums(q: Tensor, k: Tensor, reads: Tensor, pulls: tuple[Pull, ...], dtype: torch.dtype) -> Tensor:
    """Compute each row's product with the sum of ``pulls``: (b, D), (C, D), (B,) columns of candidates -> (b,)."""
    total = q.new_zeros(len(q), dtype=dtype)
    for pull in pulls:
        shape = SumShape(pull.groups, dtype)
        for features in _feature_slices(q, pull):
            groups = pull.candidates.sum_groups(k[:, features], reads, shape)
            for part in cut(len(q)):
                total[part] += pull.rows.multiply(groups, q[part, features], part)
    return total


def add_pull_gradients(
    q: Tensor, k: Tensor, reads: Tensor, pulls: tuple[Pull, ...], grad: Tensor, dq: Tensor, dk: Tensor
) -> None:
    """Add the gradients of `pull_sums` to ``dq`` and ``dk``."""
    every = torch.arange(len(q), device=q.device)
    for pull in pulls:
        shape, to = (
            SumShape(pull.groups, dq.dtype),
            reads[: len(pull.candidates.group)],
        )  # others belong to another pull
        for features in _feature_slices(q, pull):
            groups = pull.candidates.sum_groups(k[:, features], reads, shape)
            pull.rows.add_items(dq[:, features], every, groups, grad)
            del groups  # before the next of this size is made
            groups = pull.rows.sum_groups(q[:, features], every, shape, grad)
            pull.candidates.add_items(dk[:, features], to, groups)
            del groups
