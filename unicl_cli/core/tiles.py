"""Sums over all pairs of two sets of vectors, a tile of rows at a time, with exact gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import NO_KEY

FAR = -1e30
"""The logit of a hidden pair: exp gives exactly 0, and unlike -inf no difference of two of them is nan."""
CELLS = 1 << 22
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
    count: Tensor  # (b,) int64: positives of each row
    pulls: tuple[Pull, ...]  # together: the mean of a row's positives
    exclude: tuple[Tensor, Tensor] | None  # int64 (b,), (B,): a pair with equal ids is hidden


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
    row_keys: Tensor, column_keys: Tensor, dtype: torch.dtype, exclude: tuple[Tensor, Tensor] | None = None
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
    return Pairs(bias[0], bias[1], count, pulls, exclude)


def _lse(x: Tensor, dim: int, out: Tensor) -> Tensor:
    """logsumexp of a tile, its exponentials in ``out``, which may be ``x``."""
    top = x.amax(dim, keepdim=True)
    return torch.sub(x, top, out=out).exp_().sum(dim).log_().add_(top.squeeze(dim))


def _group_sums(x: Tensor, groups: Tensor, size: int) -> Tensor:
    return x.new_zeros(size, x.shape[1]).index_add_(0, groups, x)


class _Tiles(torch.autograd.Function):
    """Forward keeps the inputs and three vectors; backward computes each tile again."""

    @staticmethod
    def logits(out: Tensor, rows: Tensor, k: Tensor, pairs: Pairs, part: slice) -> Tensor:
        out = torch.add(pairs.row_bias[part, None], pairs.column_bias, out=out[: len(rows)]).addmm_(rows, k.T)
        return out if pairs.exclude is None else out.masked_fill_(pairs.exclude[0][part, None] == pairs.exclude[1], FAR)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int) -> tuple[Tensor, ...]:
        pull = q.new_zeros(len(q))
        for weight, mine, theirs in pairs.pulls:
            pull += weight * (_group_sums(k, theirs, len(k))[mine] * q).sum(1)
        rows, columns = q.new_empty(len(q)), q.new_full((len(k),), FAR)
        tile = min(tile, len(q))
        buffer, spare = q.new_empty(2, tile, len(k)).unbind()
        for start in range(0, len(q), tile):
            part = slice(start, start + tile)
            x = _Tiles.logits(buffer, q[part] * scale, k, pairs, part)
            rows[part] = _lse(x, 1, spare[: len(x)])
            torch.logaddexp(columns, _lse(x, 0, x), out=columns)
        ctx.save_for_backward(q, k, scale, rows, columns, pull)
        ctx.pairs, ctx.tile = pairs, tile
        ctx.set_materialize_grads(False)
        return rows, columns, scale * pull

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, scale, rows, columns, pull = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):  # the caller's backward may run inside autocast
            dq, dk = _lse_grads(ctx.pairs, ctx.tile, (q, k, scale), (rows, columns), grads[:2])
            d_scale = torch.dot(q.reshape(-1), dq.view(-1))  # sum of gradient times cosine, without another pass
            if grads[2] is not None:
                d_scale = d_scale + torch.dot(grads[2], pull)
                _add_pull_grads(ctx.pairs, (q, k), grads[2], dq, dk, scale)
        return dq.mul_(scale), dk, d_scale, None, None
