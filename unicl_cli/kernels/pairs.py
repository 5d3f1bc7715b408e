"""Pairs of rows and answers that count, in O(b + B) numbers, and the interface of a kernel over them."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unicl_cli.contracts import NO_KEY

FAR = -1e30
"""The logit of a hidden pair: exp gives exactly 0, and unlike -inf no difference of two of them is nan."""
Sums = tuple[Tensor, Tensor]
Grads = tuple[Tensor | None, Tensor | None]


class Pull(NamedTuple):
    """``weight[i]`` times the sum of what the answers of row i's group read."""

    weight: Tensor  # (b,) float
    row_group: Tensor  # (b,) int64, below b
    answer_group: Tensor  # (B,) int64: b where no row has the group


class Pairs(NamedTuple):
    """Which pairs count, in O(b + B) numbers; B answers read C columns, one each unless columns are shared."""

    row_bias: Tensor  # (b,): 0, or FAR
    column_bias: Tensor  # (C,): log of how many answers read it, or FAR
    reads: Tensor  # (B,) int64, below C
    positives: Tensor  # (b,) int64: how many answers are a row's positives
    pulls: tuple[Pull, ...]  # together: the mean of a row's positives
    exclude: tuple[Tensor, Tensor] | None  # int64 (b,), (C,): a pair with equal ids is hidden
    column_sums: bool  # whether the sums down the columns are wanted too


class Kernel(Protocol):
    """What ``tiles_triton`` offers: ``_sums`` and ``_spread`` below in one go each, tiles on the chip alone."""

    def sums(self, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs) -> Sums: ...
    def spread(
        self, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, sums: Sums, grads: Grads
    ) -> tuple[Tensor, Tensor]: ...


def _groups(rows: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int64 (b,), (B,) -> each row's group, each answer's or b where no row has it, the answers in a row's group."""
    ordered, order = rows.sort()
    starts = torch.zeros_like(ordered)
    starts[1:] = ordered[1:] != ordered[:-1]
    numbers = starts.cumsum(0)  # torch.unique would sync the host
    place = torch.searchsorted(ordered, answers).clamp(max=len(rows) - 1)
    theirs = torch.where(ordered[place] == answers, numbers[place], len(rows))
    sizes = theirs.new_zeros(len(rows) + 1).index_add_(0, theirs, torch.ones_like(theirs))
    mine = torch.empty_like(order).scatter_(0, order, numbers)
    return mine, theirs, sizes[mine]


def pairs_of(
    row_keys: Tensor,
    column_keys: Tensor,
    dtype: torch.dtype,
    *,
    exclude: tuple[Tensor, Tensor] | None = None,
    column_sums: bool = False,
    shared: tuple[Tensor, int] | None = None,
) -> Pairs:
    """int64 (b,), (B,) keys -> which columns are a row's positives: equal key, not NO_KEY, not excluded.

    ``shared`` is for B answers that read fewer columns: which one each reads, int64 (B,), and how many there are. A
    column counts in a row's sum as often as it is read by an answer that is not hidden. Not together with ``exclude``.
    """
    row_group, answer_group, size = _groups(row_keys, column_keys)
    count = size.masked_fill(row_keys == NO_KEY, 0)
    groups = [(row_group, answer_group, 1.0)]
    if exclude is not None:
        row_id, answer_id, _ = _groups(*exclude)
        span = len(row_keys) + 1
        twin, twins, size = _groups(row_group * span + row_id, answer_group * span + answer_id)
        count = count - size.masked_fill(count == 0, 0)
        groups.append((twin, twins, -1.0))
    share = count.to(dtype).clamp(min=1).reciprocal().masked_fill(count == 0, 0)
    pulls = tuple(Pull(sign * share, mine, theirs) for mine, theirs, sign in groups)
    reads, columns = shared or (torch.arange(len(column_keys), device=column_keys.device), len(column_keys))
    times = torch.zeros(columns, dtype=dtype, device=reads.device).index_add_(
        0, reads, (column_keys != NO_KEY).to(dtype)
    )
    row_bias = torch.zeros_like(row_keys, dtype=dtype).masked_fill(row_keys == NO_KEY, FAR)
    return Pairs(row_bias, times.log().clamp(min=FAR), reads, count, pulls, exclude, column_sums)


def lse_(x: Tensor, dim: int, out: Tensor) -> Tensor:
    """logsumexp of a matrix, its exponentials in ``out``, which may be ``x``."""
    top = x.amax(dim, keepdim=True)
    return torch.sub(x, top, out=out).exp_().sum(dim).log_().add_(top.squeeze(dim))
