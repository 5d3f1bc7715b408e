"""Sums over all pairs of two sets of vectors, a tile of rows at a time, with exact gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import NO_KEY

FAR = -1e30
"""The logit of a hidden pair: exp gives exactly 0, and unlike -inf no difference of two of them is nan."""
CELLS = 1 << 21
"""Logits alive in one tile when the caller names no tile."""


class Pull(NamedTuple):
    """``weight[i]`` times the sum of the columns whose group is row i's."""

    weight: Tensor  # (b,) float
    row_group: Tensor  # (b,) int64, below B
    column_group: Tensor  # (B,) int64, below B


class Pairs(NamedTuple):
    """Which pairs count, in O(b + B) numbers."""

    row_bias: Tensor  # (b,): 0, or FAR
    column_bias: Tensor  # (B,): 0, or FAR
    positives: Tensor  # (b,) int64: how many columns are a row's positives
    pulls: tuple[Pull, ...]  # together: the mean of a row's positives
    exclude: tuple[Tensor, Tensor] | None  # int64 (b,), (B,): a pair with equal ids is hidden
    column_sums: bool  # whether the sums down the columns are wanted too


def _groups(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int64 (b,), (B,) -> each row's and each column's group, and the size of a row's group: 0 where none matches."""
    ordered, order = columns.sort()
    starts = torch.zeros_like(ordered)
    starts[1:] = ordered[1:] != ordered[:-1]
    numbers = starts.cumsum(0)  # torch.unique would sync the host
    first = torch.searchsorted(ordered, rows)
    size = torch.searchsorted(ordered, rows, right=True) - first
    return numbers[first.clamp(max=len(columns) - 1)], torch.empty_like(order).scatter_(0, order, numbers), size


def pairs_of(
    row_keys: Tensor,
    column_keys: Tensor,
    dtype: torch.dtype,
    *,
    exclude: tuple[Tensor, Tensor] | None = None,
    column_sums: bool = False,
) -> Pairs:
    """int64 (b,), (B,) keys -> which columns are a row's positives: equal key, not NO_KEY, not excluded."""
    row_group, column_group, size = _groups(row_keys, column_keys)
    count = size.masked_fill(row_keys == NO_KEY, 0)
    groups = [(count > 0, row_group, column_group, 1.0)]
    if exclude is not None:
        row_id, column_id, found = _groups(*exclude)
        both = torch.where(found > 0, row_group * len(column_keys) + row_id, -1)
        twin, twins, size = _groups(both, column_group * len(column_keys) + column_id)
        size = size.masked_fill(count == 0, 0)
        count = count - size
        groups.append((size > 0, twin, twins, -1.0))
    share = count.to(dtype).clamp(min=1).reciprocal().masked_fill(count == 0, 0)
    pulls = tuple(Pull((sign * share).masked_fill(~there, 0), mine, theirs) for there, mine, theirs, sign in groups)
    bias = [torch.zeros_like(x, dtype=dtype).masked_fill(x == NO_KEY, FAR) for x in (row_keys, column_keys)]
    return Pairs(bias[0], bias[1], count, pulls, exclude, column_sums)


def _lse(x: Tensor, dim: int, out: Tensor) -> Tensor:
    """logsumexp of a tile, its exponentials in ``out``, which may be ``x``."""
    top = x.amax(dim, keepdim=True)
    return torch.sub(x, top, out=out).exp_().sum(dim).log_().add_(top.squeeze(dim))


def _group_sums(x: Tensor, groups: Tensor, size: int) -> Tensor:
    return x.new_zeros(size, x.shape[1]).index_add_(0, groups, x)


def _logits(rows: Tensor, k: Tensor, pairs: Pairs, part: slice, out: Tensor) -> Tensor:
    out = torch.add(pairs.row_bias[part, None], pairs.column_bias, out=out[: len(rows)]).addmm_(rows, k.T)
    return out if pairs.exclude is None else out.masked_fill_(pairs.exclude[0][part, None] == pairs.exclude[1], FAR)


def _pulled(q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
    """(b,): each row's product with the mean of its positives."""
    total = q.new_zeros(len(q))
    for weight, mine, theirs in pairs.pulls:
        total += weight * _group_sums(k, theirs, len(k))[mine].mul_(q).sum(1)
    return total


class _Tiles(torch.autograd.Function):
    """Keeps the inputs and three vectors; backward computes each tile of logits again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int) -> tuple[Tensor, ...]:
        pull = _pulled(q, k, pairs)
        rows, columns = q.new_empty(len(q)), q.new_full((len(k),), FAR)
        tiles = q.new_empty(1 + pairs.column_sums, tile, len(k))
        buffer, spare = tiles[0], tiles[-1]
        for start in range(0, len(q), tile):
            part = slice(start, start + tile)
            x = _logits(q[part] * scale, k, pairs, part, buffer)
            rows[part] = _lse(x, 1, spare[: len(x)])
            if pairs.column_sums:
                torch.logaddexp(columns, _lse(x, 0, x), out=columns)
        ctx.save_for_backward(q, k, scale, rows, columns, pull)
        ctx.pairs, ctx.tile = pairs, tile
        ctx.set_materialize_grads(False)
        return rows, columns, scale * pull

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, scale, rows, columns, pull = ctx.saved_tensors
        dq, dk = torch.zeros_like(q), torch.zeros_like(k)
        with torch.autocast(q.device.type, enabled=False):  # the caller's backward may run inside autocast
            _spread_sums(ctx, (rows, columns), grads[:2], dq, dk)
            d_scale = torch.dot(q.reshape(-1), dq.view(-1))  # gradient times cosine, summed, without another pass
            if grads[2] is not None:
                d_scale += torch.dot(grads[2], pull)
                _spread_pull(q, k, ctx.pairs, grads[2], dq, dk)
        return dq.mul_(scale), dk.mul_(scale), d_scale, None, None


def _spread_sums(
    ctx: Any, sums: tuple[Tensor, Tensor], grads: tuple[Tensor | None, ...], dq: Tensor, dk: Tensor
) -> None:
    """Add the gradients of both kinds of sums to ``dq`` and ``dk``, both without the factor ``scale``."""
    q, k, scale, *_ = ctx.saved_tensors
    (rows, columns), (by_row, by_column) = sums, grads
    if by_row is None and by_column is None:
        return
    buffer, spare = q.new_empty(2, ctx.tile, len(k)).unbind()
    for start in range(0, len(q), ctx.tile):
        part = slice(start, start + ctx.tile)
        x = _logits(q[part] * scale, k, ctx.pairs, part, buffer)
        p = spare[: len(x)]
        if by_row is not None:
            torch.sub(x, rows[part, None], out=p).exp_().mul_(by_row[part, None])
        if by_column is not None:
            x.sub_(columns).exp_().mul_(by_column)
            p = p.add_(x) if by_row is not None else x
        torch.mm(p, k, out=dq[part])
        dk.addmm_(p.T, q[part])


def _spread_pull(q: Tensor, k: Tensor, pairs: Pairs, grad: Tensor, dq: Tensor, dk: Tensor) -> None:
    for weight, mine, theirs in pairs.pulls:
        strength = (grad * weight)[:, None]
        dq += _group_sums(k, theirs, len(k))[mine].mul_(strength)
        dk += _group_sums(q * strength, mine, len(k))[theirs]


def tiled_sums(
    q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(b, D), (B, D), () -> (b,), (B,), (b,): logsumexp of the logits ``scale * q k^T`` along rows and down columns,
    and the mean logit of each row's positives (0 without any). Hidden pairs are in none of them.

    Memory: gradients of ``q`` and ``k`` plus two tiles of ``tile`` rows (default: ``CELLS / B``, 128 to 4096).
    The second vector is meaningless unless ``pairs.column_sums``. float32 or float64, called with autocast off.
    """
    tile = min(tile or min(max(CELLS // len(k), 128), 4096), len(q))
    return _Tiles.apply(q, k, scale, pairs, tile)
