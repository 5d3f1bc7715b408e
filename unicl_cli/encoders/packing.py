"""Packed texts for a causal tower: no padding, and prefixes that texts share are computed once."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.core.host_copy import host_copy, send

PAYS, LEAST = 0.9, 256
"""Pack only if at most this share of the cells remains, and at least this many fewer: packing costs some time."""


class PrefixNodes(NamedTuple):
    """T distinct prefixes of texts: under a causal mask, a state depends only on the tokens up to its own."""

    tokens: Tensor  # int64 (T,): last token of each node
    places: Tensor  # int64 (T,): its position
    cells: Tensor  # int64 (U * L,): the node of each cell; for padding, any node (nothing reads it)
    picks: Tensor  # int64 (T,): the first cell of each node
    ends: Tensor  # int64 (U,): the node that ends a row


class Layout(NamedTuple):
    """The layout of the states of U texts of at most L tokens: one per cell, or one per node if texts are packed."""

    rows: int
    length: int
    ends: Tensor  # int64 (U,): column of the end-of-text token
    order: Tensor | None  # int64 (U,): row of each text; None: in the given order
    nodes: PrefixNodes | None


def padded_layout(tokens: Tensor, eot_id: int | None) -> Layout:
    """Return the layout with every text padded to the longest.

    A text ends at its first ``eot_id``, or, for None, at the first occurrence of its highest id.
    """
    ends = (tokens if eot_id is None else (tokens == eot_id).int()).argmax(1)  # the first maximum
    return Layout(tokens.shape[0], tokens.shape[1], ends, None, None)


def layout_of(tokens: Tensor, eot_id: int | None) -> Layout:
    """Return the layout with the fewest states for int64 (U, L); the padded one if the host has no copy of them."""
    known = host_copy(tokens)
    if known is None:
        return padded_layout(tokens, eot_id)
    ids = known.numpy()
    ends = (ids if eot_id is None else ids == eot_id).argmax(1)
    live = np.arange(ids.shape[1]) <= ends[:, None]
    words = np.where(live, ids, 0).astype(np.uint32)
    order = np.argsort(words.view(f"S{words.itemsize * ids.shape[1]}")[:, 0])  # equal prefixes become neighbours
    words, live, ends = words[order], live[order], ends[order]
    first = live.copy()  # True for the first cell of each node
    first[1:] &= ~np.logical_and.accumulate(words[1:] == words[:-1], axis=1)
    picks = np.flatnonzero(first)
    if len(picks) > min(PAYS * ids.size, ids.size - LEAST):
        return padded_layout(tokens, eot_id)
    numbers = np.cumsum(first).reshape(first.shape) - 1
    cells = np.maximum.accumulate(np.where(first, numbers, 0), axis=0)
    last = cells[np.arange(len(ids)), ends]

    def there(array: NDArray[np.int64]) -> Tensor:
        return send(torch.from_numpy(array), tokens.device)

    nodes = PrefixNodes(
        tokens=there(words.ravel()[picks].astype(np.int64)),
        places=there(picks % ids.shape[1]),
        cells=there(cells.ravel()),
        picks=there(picks),
        ends=there(last),
    )
    return Layout(ids.shape[0], ids.shape[1], there(ends), there(np.argsort(order)), nodes)


class _CellsOfNodes(torch.autograd.Function):
    """``x[cells]`` whose backward sums the gradients of equal cells in at least float32: many texts share a node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.count = len(x)
        return x.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,), (cells,) = grad_outputs, ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.count, grad.shape[1], dtype=wide, device=grad.device)
        return total.index_add_(0, cells, grad.to(wide)).to(grad.dtype), None


def embed_tokens(tokens: Tensor, table: nn.Module, positions: Tensor, layout: Layout) -> Tensor:
    """Compute the first states (n, width), one per cell or node, of int64 (U, L) with positions (context, width)."""
    nodes = layout.nodes
    if nodes is None:
        return (table(tokens) + positions[: layout.length]).flatten(0, 1)
    return table(nodes.tokens) + F.embedding(nodes.places, positions)


def end_states(x: Tensor, layout: Layout) -> Tensor:
    """Pick the states at the ends of the rows: (n, width) -> (U, width)."""
    if layout.nodes is not None:
        return x[layout.nodes.ends]
    return x.view(layout.rows, layout.length, -1)[torch.arange(layout.rows, device=x.device), layout.ends]


def attend(qkv: Tensor, heads: int, layout: Layout, *, last: bool) -> Tensor:
    """Attend under the causal mask: (n, 3 * width) queries, keys, values -> (n, width), or (U, width) if ``last``.

    ``last``: only the ends of the rows are queries.
    """
    width = qkv.shape[1] // 3
    asked = qkv[:, width:] if last else qkv
    spread: Tensor = asked if layout.nodes is None else _CellsOfNodes.apply(asked, layout.nodes.cells)
    parts = spread.view(layout.rows, layout.length, -1, heads, width // heads).permute(2, 0, 3, 1, 4)
    k, v = parts[-2], parts[-1]  # (U, heads, L, d)
    if last:
        q = end_states(qkv[:, :width], layout).view(layout.rows, heads, 1, -1)
        seen = torch.arange(layout.length, device=qkv.device) <= layout.ends[:, None]  # (U, L)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None]).flatten(1)
    mixed = F.scaled_dot_product_attention(parts[0], k, v, is_causal=True).transpose(1, 2).reshape(-1, width)
    return mixed if layout.nodes is None else mixed[layout.nodes.picks]
