"""Sums over all pairs of two sets of vectors, a tile of rows at a time, with exact gradients."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from unicl_cli.errors import UniclError
from unicl_cli.kernels.pairs import FAR, Grads, Kernel, Pairs, Sums, lse_
from unicl_cli.kernels.pulls import add_pull_gradients, cut, pull_sums

CELLS = 1 << 21
"""Logits in one tile if the caller sets no tile."""


def _bias(pairs: Pairs) -> Callable[[slice, Tensor], Tensor]:
    """Return a function that writes what is added to the logits of a slice of rows: FAR or below for hidden pairs."""
    if pairs.unknown is None:
        return lambda part, out: torch.add(pairs.row_bias[part, None], pairs.column_bias, out=out)
    rows, columns = pairs.bias_factors()  # a thin product costs less than a look at the bits of each pair
    return lambda part, out: torch.mm(rows[part], columns, out=out)


def _logits(
    rows: Tensor, k: Tensor, pairs: Pairs, part: slice, bias: Callable[[slice, Tensor], Tensor], out: Tensor
) -> Tensor:
    """Compute the logits of the scaled ``rows``, which are slice ``part`` of all, with hidden pairs at FAR or below."""
    out = bias(part, out[: len(rows)]).addmm_(rows, k.T)
    if pairs.exclude is not None:
        out.masked_fill_(pairs.exclude[0][part, None] == pairs.exclude[1], FAR)
    if pairs.named is not None:
        for mine, theirs in zip(*pairs.named, strict=True):
            out.masked_fill_((mine[part, None] & theirs) != 0, FAR)
    return out


def _sums(q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int) -> tuple[Sums, Tensor | None]:
    """Compute logsumexp of the logits along rows (b,) and, if ``column_sums``, down columns (C,).

    Return all logits too if one tile holds them: they save backward one product of three.
    """
    rows, columns = q.new_empty(len(q)), q.new_full((len(k),), FAR)
    buffer, spare = (q.new_empty(tile, len(k)) for _ in range(2))
    bias = _bias(pairs)
    for part in cut(len(q), tile):
        x = _logits(q[part] * scale, k, pairs, part, bias, buffer)
        rows[part] = lse_(x, 1, spare[: len(x)])
        if pairs.column_sums:
            torch.logaddexp(columns, lse_(x, 0, spare[: len(x)]), out=columns)
    return (rows, columns), buffer if tile == len(q) else None


def _gradients(
    q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int, *, kept: Tensor | None, sums: Sums, grads: Grads
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of both kinds of sums with respect to ``q`` and ``k``, without the factor ``scale``."""
    (rows, columns), (by_row, by_column) = sums, grads
    dq, dk = torch.empty_like(q), torch.zeros_like(k)
    buffer, spare = q.new_empty(2, tile, len(k)).unbind()
    bias = _bias(pairs)
    for part in cut(len(q), tile):
        x = _logits(q[part] * scale, k, pairs, part, bias, buffer) if kept is None else kept
        p = spare[: len(x)]
        if by_row is not None:
            torch.sub(x, rows[part, None], out=p).exp_().mul_(by_row[part, None])
        if by_column is not None:
            x = torch.sub(x, columns, out=buffer[: len(x)]).exp_().mul_(by_column)
            p = p.add_(x) if by_row is not None else x
        torch.mm(p, k, out=dq[part])
        dk.addmm_(p.T, q[part])
    return dq, dk


class _Tiles(torch.autograd.Function):
    """The sums with their gradients. ``tile`` None: the kernel.

    Keeps the inputs and three vectors for backward, and the logits if one tile holds them all; several tiles are
    computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int | None) -> tuple[Tensor, ...]:
        pulls = torch.stack([pull_sums(q, k, pairs.reads, each, scale.dtype) for each in pairs.pulls])
        sums, kept = (_kernel().sums(q, k, scale, pairs), None) if tile is None else _sums(q, k, scale, pairs, tile)
        ctx.save_for_backward(q, k, scale, *sums, pulls, kept)
        ctx.pairs, ctx.tile = pairs, tile
        ctx.set_materialize_grads(False)
        return *sums, *(scale * pull for pull in pulls)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, scale, rows, columns, pulls, kept = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):  # the caller's backward may run inside autocast
            if grads[0] is None and grads[1] is None:
                dq, dk = (torch.zeros_like(x, dtype=rows.dtype) for x in (q, k))
            elif ctx.tile is None:
                dq, dk = _kernel().gradients(q, k, scale, ctx.pairs, (rows, columns), grads[:2])
            else:
                dq, dk = _gradients(q, k, scale, ctx.pairs, ctx.tile, kept=kept, sums=(rows, columns), grads=grads[:2])
            # gradient times cosine, summed, without another pass
            d_scale = torch.dot(q.reshape(-1).to(dq.dtype), dq.view(-1))
            for grad, pull, of in zip(grads[2:], pulls, ctx.pairs.pulls, strict=True):
                if grad is not None:
                    d_scale += torch.dot(grad, pull)
                    add_pull_gradients(q, k, ctx.pairs.reads, of, grad, dq, dk)
        return dq.mul_(scale).to(q.dtype), dk.mul_(scale).to(k.dtype), d_scale, None, None


@cache
def _kernel() -> Kernel:
    kernel: Any = import_module("unicl_cli.kernels.tiles_triton")  # imports triton, which not every machine has
    return cast("Kernel", kernel)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _has_kernel(device: torch.device) -> bool:
    if find_spec("triton") is None:
        return False
    if _interpreted():
        return True
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    if not nvidia or torch.cuda.get_device_capability(device) < (8, 0):  # its shared memory, its TF32
        return False
    _check_compiler()
    return True


def _check_compiler() -> None:
    """Raise UniclError without a C compiler: Triton builds the launcher of each kernel where it runs."""
    if os.name != "nt" and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise UniclError(
            "tile: auto: the loss kernels need a C compiler, which Triton did not find",
            "install gcc (or name a compiler in CC), or set loss.tile=1024 to use torch's own operations",
        )


def in_kernel(x: Tensor, tile: int | None) -> bool:
    """Return True if ``tiled_sums`` uses the Triton kernel for ``x``: no tile is set, and the device has the kernel."""
    if x.dtype == torch.float64 or (x.dtype == torch.bfloat16 and _interpreted()):
        return False  # Triton's interpreter (3.8) multiplies the bits of bfloat16 as whole numbers
    return tile is None and _has_kernel(x.device)


def default_tile(columns: int) -> int:
    """Return the rows of a tile where neither the caller nor a kernel decides."""
    return min(max(CELLS // columns, 128), 4096)


def tiled_sums(q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, tile: int | None = None) -> tuple[Tensor, ...]:
    """Compute logsumexp of the logits ``scale * q k^T`` along rows and down columns, and the mean positive logit.

    (b, D), (C, D), () -> (b,), (C,), (b,). The mean is that of a row, 0 without positives; hidden pairs are in none of
    the three. There is one for each entry of ``pairs.pulls``. A column shared by n candidates counts n times in the sum
    of a row, and its own sum is larger by its ``pairs.column_bias``. The second vector has no meaning unless
    ``pairs.column_sums``.

    Memory: gradients of ``q`` and ``k``, b rows, and two tiles of ``tile`` rows (default: ``CELLS / C``, 128 to 4096);
    one more is kept for backward if it holds all rows. With ``in_kernel``, a Triton kernel computes the sums, in half
    precision too; else ``q`` and ``k`` are float32 or float64. Call it with autocast off.
    """
    if not in_kernel(q, tile):
        tile = min(tile or default_tile(len(k)), len(q))
    return _Tiles.apply(q, k, scale, pairs, tile)
