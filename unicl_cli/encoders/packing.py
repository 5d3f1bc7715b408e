"""Texts laid out for a causal tower: without padding, beginnings that texts share kept once."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.core.host_copy import host_copy

PAYS, LEAST = 0.9, 256
"""Packed where no more than this share of the cells is left, and this many fewer: packing costs a little itself."""


class Nodes(NamedTuple):
    """T distinct beginnings of texts: under a causal mask a state depends on the tokens up to its own alone."""

    tokens: Tensor  # int64 (T,): each node's last token
    places: Tensor  # int64 (T,): its position
    cells: Tensor  # int64 (U * L,): the node of each cell; of padding, one that nothing reads
    picks: Tensor  # int64 (T,): the first cell of each node
    ends: Tensor  # int64 (U,): the node that ends a row


class Layout(NamedTuple):
    """How the states of U texts of at most L tokens lie: a cell each, or a node each where texts are packed."""

    rows: int
    length: int
    ends: Tensor  # int64 (U,): column of the end-of-text token
    order: Tensor | None  # int64 (U,): row of each text; None: as they came
    nodes: Nodes | None


def rectangle(tokens: Tensor, eot_id: int | None) -> Layout:
    """Every text padded to the longest. Texts end at the first ``eot_id``; None: at the first of the highest id."""
    ends = (tokens if eot_id is None else (tokens == eot_id).int()).argmax(1)  # the first maximum
    return Layout(tokens.shape[0], tokens.shape[1], ends, None, None)


def layout_of(tokens: Tensor, eot_id: int | None) -> Layout:
    """int64 (U, L) -> the layout with the fewest states; the rectangle where the host does not know the tokens."""
    known = host_copy(tokens)
    if known is None:
        return rectangle(tokens, eot_id)
    ids = known.numpy()
    ends = (ids if eot_id is None else ids == eot_id).argmax(1)
    live = np.arange(ids.shape[1]) <= ends[:, None]
    words = np.where(live, ids, 0).astype(np.uint32)
    order = np.argsort(words.view(f"S{words.itemsize * ids.shape[1]}")[:, 0])  # equal beginnings side by side
    words, live, ends = words[order], live[order], ends[order]
    first = live.copy()  # is the cell the first of its node?
    first[1:] &= ~np.logical_and.accumulate(words[1:] == words[:-1], axis=1)
    picks = np.flatnonzero(first)
    if len(picks) > min(PAYS * ids.size, ids.size - LEAST):
        return rectangle(tokens, eot_id)
    numbers = np.cumsum(first).reshape(first.shape) - 1
    cells = np.maximum.accumulate(np.where(first, numbers, 0), axis=0)
    last = cells[np.arange(len(ids)), ends]

    def there(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(tokens.device, non_blocking=True)

    nodes = Nodes(
        tokens=there(words.ravel()[picks].astype(np.int64)),
        places=there(picks % ids.shape[1]),
        cells=there(cells.ravel()),
        picks=there(picks),
        ends=there(last),
    )
    return Layout(ids.shape[0], ids.shape[1], there(ends), there(np.argsort(order)), nodes)


class _Spread(torch.autograd.Function):
    """``x[cells]``; the gradients of equal cells are summed in float32 at least, however many texts share a node."""

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


def embedded(tokens: Tensor, table: nn.Module, positions: Tensor, layout: Layout) -> Tensor:
    """int64 (U, L), an embedding, (context, width) -> the first states (n, width), a cell or a node each."""
    nodes = layout.nodes
    if nodes is None:
        return (table(tokens) + positions[: layout.length]).flatten(0, 1)
    return table(nodes.tokens) + F.embedding(nodes.places, positions)


def at_ends(x: Tensor, layout: Layout) -> Tensor:
    """(n, width) -> (U, width): the states at the ends of the rows."""
    if layout.nodes is not None:
        return x[layout.nodes.ends]
    return x.view(layout.rows, layout.length, -1)[torch.arange(layout.rows, device=x.device), layout.ends]


def attended(qkv: Tensor, heads: int, layout: Layout, *, last: bool) -> Tensor:
    """(n, 3 * width) queries, keys, values -> (n, width) under the causal mask; ``last``: (U, width), of ends alone."""
    width = qkv.shape[1] // 3
    asked = qkv[:, width:] if last else qkv
    spread: Tensor = asked if layout.nodes is None else _Spread.apply(asked, layout.nodes.cells)
    parts = spread.view(layout.rows, layout.length, -1, heads, width // heads).permute(2, 0, 3, 1, 4)
    k, v = parts[-2], parts[-1]  # (U, heads, L, d)
    if last:
        q = at_ends(qkv[:, :width], layout).view(layout.rows, heads, 1, -1)
        seen = torch.arange(layout.length, device=qkv.device) <= layout.ends[:, None]  # (U, L)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None]).flatten(1)
    mixed = F.scaled_dot_product_attention(parts[0], k, v, is_causal=True).transpose(1, 2).reshape(-1, width)
    return mixed if layout.nodes is None else mixed[layout.nodes.picks]
