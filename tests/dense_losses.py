"""Losses from float64 matrices, and the gap of ours to them: the oracle of the kernels, on any device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL
from unicl_cli.kernels.targets import Target
from unicl_cli.losses.contrast import both_ways, contrast, contrast_tiled

TERMS = ({"image": 0.5, "text": 0.5}, {"image": 1.0}, {"text": 1.0})


def unit(rows: int, width: int, seed: int) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).float()


def keys_of(rows: int, seed: int) -> Tensor:
    draw = torch.randint(0, 6, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([NO_KEY, 0, 1, 2, 2**40, 2**62 + 5])[draw]


def gap(ours: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry unless that is tiny."""
    return max(((x - y).abs().max() / y.abs().max().clamp(min=0.1)).item() for x, y in zip(ours, exact, strict=True))


def graded(value: Tensor, upstream: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [value, *torch.autograd.grad(value.reshape(-1) @ upstream.to(value), inputs)]


def inputs_of(*features: Tensor, scale: float, device: str = "cpu") -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Leaves for the kernel, and the same numbers in float64."""
    leaves = tuple(x.to(device).requires_grad_() for x in (*features, torch.tensor(scale)))
    return leaves, tuple(x.detach().double().requires_grad_() for x in leaves)


def rows_gap(n: int, m: int, width: int, *, excluded: bool, scale: float = 14.3, device: str = "cpu") -> float:
    (q, k, s), wide = inputs_of(unit(n, width, n), unit(m, width, m + 1), scale=scale, device=device)
    keys = keys_of(n, width).to(device), keys_of(m, n).to(device)
    ids = (torch.arange(n, device=device) % 7, torch.arange(m, device=device) % 5) if excluded else None
    upstream = torch.rand(n, generator=torch.Generator().manual_seed(n)).to(device)
    ours = graded(contrast_tiled(q, k, *keys, s, ids), upstream, (q, k, s))
    return gap(ours, graded(contrast(*wide[:2], *keys, wide[2], ids), upstream, wide))


def dense(u: Tensor, v: Tensor, keys: Tensor, scale: Tensor, weights: tuple[float, float]) -> Tensor:
    each = contrast(u, v, keys, keys, scale), contrast(v, u, keys, keys, scale)
    count = (keys != NO_KEY).sum().clamp(min=1)
    return sum(weight * x[keys != NO_KEY].sum() / count for weight, x in zip(weights, each, strict=True))


def target_gap(n: int, width: int, *, sets: bool, device: str = "cpu") -> float:
    """The gap to torch's float64 tiles, which other tests hold against the matrix of targets."""
    (u, v, s), wide = inputs_of(unit(n, width, n), unit(n, width, n + 1), scale=14.3, device=device)
    rows, one = torch.arange(n), torch.ones(1, device=device)
    target = Target(rows % 9, torch.linspace(0, 1, n), (rows % 6)[:, None])
    if sets:
        labels = torch.stack([rows % 4, rows % 3 + 4, (rows % 5 + 6).masked_fill(rows % 5 == 0, NO_LABEL)], 1)
        known, groups = (labels[:, 2] != NO_LABEL) * 4 + 3, torch.tensor([0] * 4 + [1] * 3 + [2] * 4, device=device)
        shown = labels[:, 0].where(rows % 3 == 0, labels[:, 2])
        target = Target(rows % 9, torch.linspace(0, 0.9, n), labels, None, shown, known, groups)
    target = target.map_rows(lambda x: x.to(device))
    keys = rows.masked_fill(rows % 11 == 3, NO_KEY).to(device)
    losses = (both_ways(*x, keys, scale, target=target)["loss"] for x, scale in (((u, v), s), (wide[:2], wide[2])))
    ours, exact = losses
    return gap(graded(ours, one, (u, v, s)), graded(exact, one, wide))


def both_gap(
    n: int,
    width: int,
    terms: dict[str, float],
    *,
    folded: bool,
    scale: float = 14.3,
    device: str = "cpu",
    keys: Tensor | None = None,
) -> float:
    texts = max(1, n // 3) if folded else n
    (u, v, s), wide = inputs_of(unit(n, width, n), unit(texts, width, n + 1), scale=scale, device=device)
    keys = (keys_of(n, width) if keys is None else keys).to(device)
    index = (torch.arange(n) % texts).to(device)
    loss = both_ways(u, v, keys, s, terms=list(terms), index=index if folded else None)["loss"]
    weights = terms.get("image", 0.0), terms.get("text", 0.0)
    one = torch.ones(1, device=device)
    return gap(graded(loss, one, (u, v, s)), graded(dense(wide[0], wide[1][index], keys, wide[2], weights), one, wide))
