"""The sums of ``tiles`` and their gradients on a GPU: Triton kernels that keep each tile of logits on the chip."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from unicl_cli.kernels import triton_kernels
from unicl_cli.kernels.pairs import FAR, Grads, Pairs, Sums, lse_

PROGRAMS = 512
"""Minimum number of programs of a launch, if there is work for them: a few for each multiprocessor of a GPU."""
PARTIAL = 1 << 23
"""Maximum number of values that one launch leaves for a second reduction."""

_KERNELS: Any = triton_kernels  # launched by Triton's kernel[grid](...)


class Blocks(NamedTuple):
    """Sizes of one launch, powers of 2. They are fixed: with autotuning a resumed run would round differently.

    Compiled for sm_80, 90 and 100, they spill almost no registers and need at most 97 KiB of shared memory, which
    every GPU since Ampere has. None of them was timed.
    """

    own: int  # rows of the side that a program owns
    other: int  # rows of the other side in one tile
    depth: int  # coordinates of a product at once
    warps: int
    stages: int


SUMS = {2: Blocks(128, 128, 64, 8, 3), 4: Blocks(128, 64, 32, 8, 3)}
"""Sizes of a launch by the bytes of a feature."""
GRADIENTS = {2: Blocks(64, 64, 64, 8, 3), 4: Blocks(64, 32, 32, 8, 2)}
SLICE = 256
"""Coordinates of the gradient that a program of ``gradients`` owns; more would not fit into its registers."""


class Side(NamedTuple):
    """One of the two sets of vectors, with the bias and the id of each vector."""

    x: Tensor  # (n, D)
    bias: Tensor  # (n,) float32
    ids: Tensor  # (n,) int64, read only where pairs are excluded


def _splits(blocks: int, others: int, block: int) -> tuple[int, int]:
    """Return the number of programs that share the columns of a block, and the columns of each.

    There are enough programs in all, and none is without work.
    """
    tiles = triton.cdiv(others, block)
    per_split = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, blocks)))
    return triton.cdiv(tiles, per_split), per_split * block


def _constants(sizes: Blocks, width: int, pairs: Pairs) -> dict[str, Any]:
    """Return the compile-time constants of both kernels.

    float32 features are multiplied as three products of TF32 parts: a single one is off by 1e-3 of a cosine, and
    without tensor cores the kernel would be slower than torch's own product.
    """
    return {
        "OWN": sizes.own,
        "OTHER": sizes.other,
        "DEPTH": min(sizes.depth, max(16, triton.next_power_of_2(width))),
        "EXCLUDE": _hidden_pairs(pairs)[0],
        "PRECISION": "tf32x3",
        "num_warps": sizes.warps,
        "num_stages": sizes.stages,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def _hidden_pairs(pairs: Pairs) -> tuple[int, tuple[Tensor, Tensor]]:
    """Return the kernel's way of hiding pairs, and the ids of both sides that it reads."""
    if pairs.named is not None:
        raise ValueError("the kernel reads one word of bits for each row: set a tile")
    if pairs.exclude is not None:
        return triton_kernels.EQUAL_IDS.value, pairs.exclude
    if pairs.unknown is not None:
        return triton_kernels.COMMON_BITS.value, pairs.unknown[:2]
    return triton_kernels.NONE.value, (pairs.positives, pairs.reads)  # not read


def _sides(q: Tensor, k: Tensor, pairs: Pairs) -> tuple[Side, Side]:
    ids = _hidden_pairs(pairs)[1]
    return Side(q.contiguous(), pairs.row_bias, ids[0]), Side(k.contiguous(), pairs.column_bias, ids[1])


def _current(x: Tensor) -> AbstractContextManager[Any]:
    """Make the device of ``x`` the current one: Triton launches there, wherever the tensors are."""
    return torch.cuda.device_of(x)


def sums(q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs) -> Sums:
    """Compute ``tiles._sums`` of bfloat16, float16 or float32 features; the sums are float32."""
    with _current(q):
        return _compute_sums(q, k, scale, pairs)


def _compute_sums(q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs) -> Sums:
    (rows, columns), sizes = _sides(q, k, pairs), SUMS[q.element_size()]
    n, m = len(q), len(k)
    most = max(1, PARTIAL // m)  # blocks of rows whose column sums wait at once
    row_sums, column_sums = scale.new_empty(n, dtype=torch.float32), scale.new_full((m,), FAR, dtype=torch.float32)
    for first in range(0, n, most * sizes.own):
        blocks = min(most, triton.cdiv(n - first, sizes.own))
        splits, per_split = _splits(blocks, m, sizes.other)
        own_out = row_sums.new_empty(splits, n)
        other_out = row_sums.new_empty(blocks if pairs.column_sums else 0, m)
        _KERNELS.sums[(blocks, splits)](
            rows.x, columns.x, rows.bias, columns.bias, rows.ids, columns.ids, scale, own_out, other_out,
            first, n, m, q.shape[1], per_split,
            COLUMNS=pairs.column_sums, **_constants(sizes, q.shape[1], pairs),
        )  # fmt: skip
        here = slice(first, first + blocks * sizes.own)
        row_sums[here] = lse_(own_out[:, here], 0, own_out[:, here])
        if pairs.column_sums:
            torch.logaddexp(column_sums, lse_(other_out, 0, other_out), out=column_sums)
    return row_sums, column_sums


def _one_side(sides: tuple[Side, Side], scale: Tensor, pairs: Pairs, sums: Sums, grads: Grads) -> Tensor:
    """Compute the gradient of the first side, without the factor ``scale``."""
    (own, other), (own_grad, other_grad) = sides, grads
    n, width = own.x.shape
    sizes = GRADIENTS[own.x.element_size()]
    blocks, part = triton.cdiv(n, sizes.own), min(SLICE, max(16, triton.next_power_of_2(width)))
    parts = triton.cdiv(width, part)
    splits, per_split = _splits(blocks * parts, len(other.x), sizes.other)
    out = scale.new_empty(splits, n, width, dtype=torch.float32)
    _KERNELS.gradients[(blocks, splits, parts)](
        own.x, other.x, own.bias, other.bias, own.ids, other.ids, scale, *sums,
        *(x if grad is None else grad for x, grad in zip(sums, grads, strict=True)), out,
        n, len(other.x), width, per_split,
        SLICE=part, BY_OWN=own_grad is not None, BY_OTHER=other_grad is not None, **_constants(sizes, width, pairs),
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0)


def gradients(q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, sums: Sums, grads: Grads) -> tuple[Tensor, Tensor]:
    """Compute ``tiles._gradients``.

    One launch owns blocks of rows, the other blocks of columns, so no two programs add to the same number.
    """
    # gradients are scaled to at most 1, so that none that matters underflows in half precision
    peak = torch.stack([x.abs().max() for x in grads if x is not None]).max().clamp(min=torch.finfo(torch.float32).tiny)
    by_row, by_column = (None if x is None else (x / peak).contiguous() for x in grads)
    rows, columns = _sides(q, k, pairs)
    with _current(q):
        dq = _one_side((rows, columns), scale, pairs, sums, (by_row, by_column))
        dk = _one_side((columns, rows), scale, pairs, (sums[1], sums[0]), (by_column, by_row))
    return dq.mul_(peak), dk.mul_(peak)
