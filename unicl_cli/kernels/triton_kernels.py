"""The Triton kernels of ``tiles_triton``: each program owns a block of one side and visits tiles of the other."""

# A kernel is Triton's language, not Python: its arguments are pointers and numbers, its constants are upper case.
# ruff: noqa: ANN001, ANN201, N803, PLR0913
# pyright: basic

import triton
import triton.language as tl

from unicl_cli.kernels.pairs import FAR

COUNTS = ("first", "n_own", "n_other", "per_split")
"""Numbers that differ from batch to batch: Triton would compile again for those that 16 divides, and for 1."""
NONE, EQUAL_IDS, COMMON_BITS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Pairs that are hidden (``EXCLUDE``), by the ids of both sides."""
HIDDEN = tl.constexpr(FAR)
BEYOND = tl.constexpr(4 * FAR)
"""The logit beyond the last row or column: its exp is 0 even relative to hidden pairs, which reach 2 * FAR."""


@triton.jit
def tile(
    own, other, own_bias, other_bias, own_ids, other_ids, scale, row, column, n_own, n_other, width,
    OWN: tl.constexpr, OTHER: tl.constexpr, DEPTH: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the logits of rows ``row`` and columns ``column``."""
    in_own, in_other = row < n_own, column < n_other
    product = tl.zeros((OWN, OTHER), tl.float32)
    for start in range(0, width, DEPTH):
        d = start + tl.arange(0, DEPTH)
        a = tl.load(own + row[:, None] * width + d, mask=in_own[:, None] & (d < width), other=0.0)
        b = tl.load(other + column * width + d[:, None], mask=in_other & (d < width)[:, None], other=0.0)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    bias = tl.load(own_bias + row, mask=in_own, other=0.0)[:, None]
    x = product * scale + (bias + tl.load(other_bias + column, mask=in_other, other=0.0))
    if EXCLUDE != NONE:
        one = tl.load(own_ids + row, mask=in_own, other=0)[:, None]
        many = tl.load(other_ids + column, mask=in_other, other=0)
        x = tl.where(one == many if EXCLUDE == EQUAL_IDS else (one & many) != 0, HIDDEN, x)
    return tl.where(in_own[:, None] & in_other, x, BEYOND)


@triton.jit(do_not_specialize=COUNTS)
def sums(
    own, other, own_bias, other_bias, own_ids, other_ids, scale, own_out, other_out,
    first, n_own, n_other, width, per_split,
    OWN: tl.constexpr, OTHER: tl.constexpr, DEPTH: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum the logits: program (i, s) visits the s-th range of columns for the i-th block of rows after row ``first``.

    It writes the sums of its rows over its range to ``own_out[s]`` and those of columns over its rows to
    ``other_out[i]``.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    row = (first + block * OWN + tl.arange(0, OWN)).to(tl.int64)
    s = tl.load(scale)
    top = tl.full((OWN,), float("-inf"), tl.float32)
    total = tl.zeros((OWN,), tl.float32)
    for start in range(split * per_split, min((split + 1) * per_split, n_other), OTHER):
        column = (start + tl.arange(0, OTHER)).to(tl.int64)
        x = tile(
            own, other, own_bias, other_bias, own_ids, other_ids, s, row, column, n_own, n_other, width,
            OWN, OTHER, DEPTH, EXCLUDE, PRECISION,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
        top = higher
        if COLUMNS:
            peak = tl.max(x, 0)
            below = peak + tl.log(tl.sum(tl.exp(x - peak), 0))
            tl.store(other_out + block.to(tl.int64) * n_other + column, below, mask=column < n_other)
    tl.store(own_out + split.to(tl.int64) * n_own + row, top + tl.log(total), mask=row < n_own)


@triton.jit(do_not_specialize=COUNTS)
def gradients(
    own, other, own_bias, other_bias, own_ids, other_ids, scale, own_sum, other_sum, own_grad, other_grad, out,
    n_own, n_other, width, per_split,
    OWN: tl.constexpr, OTHER: tl.constexpr, DEPTH: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
    SLICE: tl.constexpr, BY_OWN: tl.constexpr, BY_OTHER: tl.constexpr,
):  # fmt: skip
    """Compute gradients: program (i, s, d) owns block i of its side, slice d of coordinates and visits range s."""
    block, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = (block * OWN + tl.arange(0, OWN)).to(tl.int64)
    in_own, d = row < n_own, part * SLICE + tl.arange(0, SLICE)
    s = tl.load(scale)
    one_sum = tl.load(own_sum + row, mask=in_own & BY_OWN, other=0.0)
    one_grad = tl.load(own_grad + row, mask=in_own & BY_OWN, other=0.0)
    grad = tl.zeros((OWN, SLICE), tl.float32)
    for start in range(split * per_split, min((split + 1) * per_split, n_other), OTHER):
        column = (start + tl.arange(0, OTHER)).to(tl.int64)
        in_other = column < n_other
        x = tile(
            own, other, own_bias, other_bias, own_ids, other_ids, s, row, column, n_own, n_other, width,
            OWN, OTHER, DEPTH, EXCLUDE, PRECISION,
        )  # fmt: skip
        p = tl.zeros((OWN, OTHER), tl.float32)
        if BY_OWN:
            p += tl.exp(x - one_sum[:, None]) * one_grad[:, None]
        if BY_OTHER:
            many_sum = tl.load(other_sum + column, mask=in_other, other=0.0)
            p += tl.exp(x - many_sum) * tl.load(other_grad + column, mask=in_other, other=0.0)
        values = tl.load(other + column[:, None] * width + d, mask=in_other[:, None] & (d < width), other=0.0)
        grad = tl.dot(p.to(values.dtype), values, grad, input_precision=PRECISION)
    place = out + (split.to(tl.int64) * n_own + row[:, None]) * width + d
    tl.store(place, grad, mask=in_own[:, None] & (d < width))
