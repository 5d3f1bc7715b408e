"""The pairs of rows and candidates that a loss counts, in O(b + B) numbers, and the interface of a kernel over them."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unicl_cli.contracts import NO_KEY
from unicl_cli.kernels.pulls import Pull, Side

FAR = -1e30
"""The logit of a hidden pair: its exp is exactly 0 and, unlike with -inf, a difference of two is not nan."""
Sums = tuple[Tensor, Tensor]
Grads = tuple[Tensor | None, Tensor | None]


class Unknown(NamedTuple):
    """Pairs hidden because they share a bit: groups that a row is not annotated for, and the group of a column."""

    rows: Tensor  # (b,) int64
    columns: Tensor  # (C,) int64
    groups: int  # bits from this one on are not used


class Pairs(NamedTuple):
    """The pairs that count, in O(b + B) numbers; B candidates read C columns, one each unless columns are shared."""

    row_bias: Tensor  # (b,): 0, or FAR
    column_bias: Tensor  # (C,): log of the number of candidates that read it, or FAR
    reads: Tensor  # (B,) int64, below C
    positives: Tensor  # (b,) int64: number of candidates that are positives of a row
    pulls: tuple[tuple[Pull, ...], ...]  # one or two results, each the sum of its pulls: the mean of a row's positives
    exclude: tuple[Tensor, Tensor] | None  # int64 (b,), (C,): a pair with equal ids is hidden
    column_sums: bool  # sum down the columns too
    unknown: Unknown | None = None
    named: tuple[Tensor, Tensor] | None = None  # int64 (W, b), (W, C): a common bit of a word hides a pair

    def bias_factors(self) -> tuple[Tensor, Tensor]:
        """Return two matrices, (b, R) and (R, C), whose product is the sum of both biases, FAR or below if unknown."""
        rows = [self.row_bias, torch.ones_like(self.row_bias)]
        columns = [torch.ones_like(self.column_bias), self.column_bias]
        if self.unknown is not None:
            for group in range(self.unknown.groups):
                rows.append((self.unknown.rows >> group & 1).to(rows[0].dtype) * FAR)
                columns.append((self.unknown.columns >> group & 1).to(rows[0].dtype))
        return torch.stack(rows, 1), torch.stack(columns)


class Kernel(Protocol):
    """The interface of ``tiles_triton``: the sums of ``tiles`` and their gradients, with tiles kept on the chip."""

    def sums(self, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs) -> Sums: ...
    def gradients(
        self, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs, sums: Sums, grads: Grads
    ) -> tuple[Tensor, Tensor]: ...


def group_keys(rows: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Group rows and candidates by key: int64 (b,), (B,) -> row groups (b,), candidate groups (B,), sizes (b + 1,).

    The group of a candidate is b where no row has its key; the size of a group is the number of its candidates.
    """
    ordered, order = rows.sort()
    starts = torch.zeros_like(ordered)
    starts[1:] = ordered[1:] != ordered[:-1]
    numbers = starts.cumsum(0)  # torch.unique would make the host wait
    place = torch.searchsorted(ordered, candidates).clamp(max=len(rows) - 1)
    theirs = torch.where(ordered[place] == candidates, numbers[place], len(rows))
    sizes = theirs.new_zeros(len(rows) + 1).index_add_(0, theirs, torch.ones_like(theirs))
    mine = torch.empty_like(order).scatter_(0, order, numbers)
    return mine, theirs, sizes


def pairs_of(
    row_keys: Tensor,
    column_keys: Tensor,
    dtype: torch.dtype,
    *,
    exclude: tuple[Tensor, Tensor] | None = None,
    column_sums: bool = False,
    shared: tuple[Tensor, int] | None = None,
) -> Pairs:
    """Find the positives of each row: int64 (b,), (B,) keys -> candidates with an equal key, not NO_KEY, not excluded.

    ``shared`` is for B candidates that read fewer columns: the column of each, int64 (B,), and the number of columns.
    A column counts in a row's sum once for each candidate that reads it and is not hidden. Not with ``exclude``.
    """
    row_group, candidate_group, sizes = group_keys(row_keys, column_keys)
    count = sizes[row_group].masked_fill(row_keys == NO_KEY, 0)
    groups = [(row_group, candidate_group, 1.0)]
    if exclude is not None:
        row_id, candidate_id, _ = group_keys(*exclude)
        span = len(row_keys) + 1
        twin, twins, sizes = group_keys(row_group * span + row_id, candidate_group * span + candidate_id)
        count = count - sizes[twin].masked_fill(count == 0, 0)
        groups.append((twin, twins, -1.0))
    share = count.to(dtype).clamp(min=1).reciprocal().masked_fill(count == 0, 0)
    pulls = tuple(Pull(Side(mine, sign * share), Side(theirs), len(row_keys)) for mine, theirs, sign in groups)
    reads, columns = shared or (torch.arange(len(column_keys), device=column_keys.device), len(column_keys))
    times = torch.zeros(columns, dtype=dtype, device=reads.device).index_add_(
        0, reads, (column_keys != NO_KEY).to(dtype)
    )
    row_bias = torch.zeros_like(row_keys, dtype=dtype).masked_fill(row_keys == NO_KEY, FAR)
    return Pairs(row_bias, times.log().clamp(min=FAR), reads, count, (pulls,), exclude, column_sums)


def add_columns(pairs: Pairs, hidden: Tensor, image: tuple[Pull, ...]) -> Pairs:
    """Append one column with one candidate per entry of ``hidden``, bool (columns,); replace the pulls of images."""
    columns = len(pairs.column_bias)
    own = torch.arange(columns, columns + len(hidden), device=pairs.reads.device)
    bias = torch.cat([pairs.column_bias, hidden.to(pairs.column_bias.dtype) * FAR])
    return pairs._replace(column_bias=bias, reads=torch.cat([pairs.reads, own]), pulls=(image, pairs.pulls[-1]))


def lse_(x: Tensor, dim: int, out: Tensor) -> Tensor:
    """Compute the logsumexp of a matrix; ``out``, which may be ``x``, is overwritten with exponentials."""
    top = x.amax(dim, keepdim=True)
    return torch.sub(x, top, out=out).exp_().sum(dim).log_().add_(top.squeeze(dim))
