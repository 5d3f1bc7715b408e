"""Sums over all pairs of two sets of vectors, a tile of rows at a time, with exact gradients."""

import os
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from unicl_cli.kernels.pairs import FAR, Grads, Kernel, Pairs, Sums, lse_

CELLS = 1 << 21
"""Logits alive in one tile when the caller names no tile."""
STRIDE = 1024
"""Rows that are copied at once where rows are picked by number."""


def _parts(length: int, size: int = STRIDE) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _add(out: Tensor, to: Tensor, x: Tensor, of: Tensor, weight: Tensor | None = None) -> Tensor:
    """``out[to[j]] += weight[j] * x[of[j]]`` for all j, without a copy of all the rows that are picked."""
    for part in _parts(len(to)):
        rows = x.index_select(0, of[part]).to(out.dtype)  # a third of the time of x[of[part]]
        out.index_add_(0, to[part], rows if weight is None else rows.mul_(weight[part, None]))
    return out


def _logits(rows: Tensor, k: Tensor, pairs: Pairs, part: slice, out: Tensor) -> Tensor:
    out = torch.add(pairs.row_bias[part, None], pairs.column_bias, out=out[: len(rows)]).addmm_(rows, k.T)
    return out if pairs.exclude is None else out.masked_fill_(pairs.exclude[0][part, None] == pairs.exclude[1], FAR)


def _sums(q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int) -> tuple[Sums, Tensor | None]:
    """(b,), (C,): logsumexp of the logits along rows and, where wanted, down columns. All logits, if one tile has them:
    kept, they spare backward one product of three.
    """
    rows, columns = q.new_empty(len(q)), q.new_full((len(k),), FAR)
    buffer, spare = (q.new_empty(tile, len(k)) for _ in range(2))
    for part in _parts(len(q), tile):
        x = _logits(q[part] * scale, k, pairs, part, buffer)
        rows[part] = lse_(x, 1, spare[: len(x)])
        if pairs.column_sums:
            torch.logaddexp(columns, lse_(x, 0, spare[: len(x)]), out=columns)
    return (rows, columns), buffer if tile == len(q) else None


def _spread(
    q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int, *, kept: Tensor | None, sums: Sums, grads: Grads
) -> tuple[Tensor, Tensor]:
    """The gradients of both kinds of sums with respect to ``q`` and ``k``, both without the factor ``scale``."""
    (rows, columns), (by_row, by_column) = sums, grads
    dq, dk = torch.empty_like(q), torch.zeros_like(k)
    buffer, spare = q.new_empty(2, tile, len(k)).unbind()
    for part in _parts(len(q), tile):
        x = _logits(q[part] * scale, k, pairs, part, buffer) if kept is None else kept
        p = spare[: len(x)]
        if by_row is not None:
            torch.sub(x, rows[part, None], out=p).exp_().mul_(by_row[part, None])
        if by_column is not None:
            x = torch.sub(x, columns, out=buffer[: len(x)]).exp_().mul_(by_column)
            p = p.add_(x) if by_row is not None else x
        torch.mm(p, k, out=dq[part])
        dk.addmm_(p.T, q[part])
    return dq, dk


def _pulled(q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
    """(b,): each row's product with the mean of its positives."""
    total = torch.zeros_like(pairs.row_bias)
    for weight, mine, theirs in pairs.pulls:
        groups = _add(total.new_zeros(len(q) + 1, q.shape[1]), theirs, k, pairs.reads)
        for part in _parts(len(q)):
            total[part] += groups.index_select(0, mine[part]).mul_(q[part]).sum(1).mul_(weight[part])
    return total


def _spread_pull(q: Tensor, k: Tensor, pairs: Pairs, grad: Tensor, dq: Tensor, dk: Tensor) -> None:
    """Add the gradients of ``_pulled``."""
    every = torch.arange(len(q), device=q.device)
    for weight, mine, theirs in pairs.pulls:
        strength = grad * weight
        groups = _add(dq.new_zeros(len(q) + 1, q.shape[1]), theirs, k, pairs.reads)
        _add(dq, every, groups, mine, strength)
        _add(groups.zero_(), mine, q, every, strength)
        _add(dk, pairs.reads, groups, theirs)


class _Tiles(torch.autograd.Function):
    """Keeps the inputs, three vectors and a tile that holds all logits; backward computes each of several tiles again.
    ``tile`` None: the kernel.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int | None) -> tuple[Tensor, ...]:
        pull = _pulled(q, k, pairs)
        sums, kept = (_kernel().sums(q, k, scale, pairs), None) if tile is None else _sums(q, k, scale, pairs, tile)
        ctx.save_for_backward(q, k, scale, *sums, pull, kept)
        ctx.pairs, ctx.tile = pairs, tile
        ctx.set_materialize_grads(False)
        return *sums, scale * pull

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, scale, rows, columns, pull, kept = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):  # the caller's backward may run inside autocast
            if grads[0] is None and grads[1] is None:
                dq, dk = (torch.zeros_like(x, dtype=rows.dtype) for x in (q, k))
            elif ctx.tile is None:
                dq, dk = _kernel().spread(q, k, scale, ctx.pairs, (rows, columns), grads[:2])
            else:
                dq, dk = _spread(q, k, scale, ctx.pairs, ctx.tile, kept=kept, sums=(rows, columns), grads=grads[:2])
            # gradient times cosine, summed, without another pass
            d_scale = torch.dot(q.reshape(-1).to(dq.dtype), dq.view(-1))
            if grads[2] is not None:
                d_scale += torch.dot(grads[2], pull)
                _spread_pull(q, k, ctx.pairs, grads[2], dq, dk)
        return dq.mul_(scale).to(q.dtype), dk.mul_(scale).to(k.dtype), d_scale, None, None


@cache
def _kernel() -> Kernel:
    return cast(
        "Kernel", import_module("unicl_cli.kernels.tiles_triton")
    )  # imports triton, which not every machine has


@cache
def _has_kernel(device: torch.device) -> bool:
    if find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)  # its shared memory, its TF32


def in_kernel(x: Tensor, tile: int | None) -> bool:
    """Whether ``tiled_sums`` of such features runs in the Triton kernel: no tile was named, and the device has it."""
    return tile is None and x.dtype != torch.float64 and _has_kernel(x.device)


def tiled_sums(
    q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(b, D), (C, D), () -> (b,), (C,), (b,): logsumexp of the logits ``scale * q k^T`` along rows and down columns,
    and the mean logit of each row's positives (0 without any). Hidden pairs are in none of them.

    A column that several answers share counts in a row's sum as often, and its own sum is larger by its
    ``pairs.column_bias``. The second vector is meaningless unless ``pairs.column_sums``. Memory: gradients of ``q`` and
    ``k``, b rows, and two tiles of ``tile`` rows (default: ``CELLS / C``, 128 to 4096), one more kept for backward if
    it holds all rows. Where no tile is named and ``in_kernel``, a Triton kernel, which takes half precision too; else
    float32 or float64. Call it with autocast off.
    """
    if not in_kernel(q, tile):
        tile = min(tile or min(max(CELLS // len(k), 128), 4096), len(q))
    return _Tiles.apply(q, k, scale, pairs, tile)
