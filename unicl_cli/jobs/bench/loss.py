"""`bench loss`: the loss alone, forward and backward, in float32 at d = 512: folded, tiled, dense, and open_clip's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from open_clip import ClipLoss
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.core.dist import rank, world_size
from unicl_cli.core.machine import free_memory, machine_memory
from unicl_cli.formats import byte_size
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device
from unicl_cli.losses import both_ways

DIM, CLASSES = 512, 1000
FOLDED, TILED, DENSE = "folded", "tiled", "dense"
"""folded: one column per distinct text, as in training. tiled: one per row. dense: as published, B x B targets."""
MATRICES = {DENSE: 7, PEER: 5}
"""Approximate number of B x B float matrices alive at once; a variant that needs too much memory is skipped."""
CHECKED = 4096
"""Larger batches are not checked against the dense form: that would take most of the time."""


def cases(request: Request) -> list[Case]:
    variants = (FOLDED, TILED, DENSE, *((PEER,) if request.vs else ()))
    found: list[Case] = []
    for size in request.sizes or (256, 1024, 4096):
        for processes in request.processes or (1,):
            several = f" on {processes}" if processes > 1 else ""
            fitting = tuple(name for name in variants if name not in skipped_for_memory(size))
            shown = fitting if processes == 1 else tuple(name for name in fitting if name != DENSE)
            reference = DENSE if DENSE in shown else shown[-1]
            prepare = partial(prepare_loss, request, size)
            found.append(Case(f"B={size}{several}", "rows", shown, reference, prepare, 1, processes))
    return found


def skipped_for_memory(size: int) -> dict[str, str]:
    """Return the variants that do not fit into memory at this batch size, with the reason."""
    cuda = torch.cuda.is_available()
    room = torch.cuda.mem_get_info()[0] if cuda else free_memory() or machine_memory() or math.inf
    needed = {name: 4 * count * size**2 for name, count in MATRICES.items()}
    return {
        name: f"needs about {byte_size(need)}, more than half of the free {byte_size(room)}"
        for name, need in needed.items()
        if need > room / 2
    }


def prepare_loss(request: Request, size: int, variants: Collection[str]) -> PreparedCase:
    """Prepare this rank's share of ``size`` rows: half captions, half rows of 1,000 classes with one text each."""
    device = choose_device(request)
    draw = torch.Generator().manual_seed(rank())
    rows = size // world_size()
    caption = torch.rand(rows, generator=draw) < 0.5
    classes = torch.randint(0, CLASSES, (rows,), generator=draw)
    keys = torch.where(caption, 2**40 + rank() * size + torch.arange(rows), classes)
    distinct, index = keys.unique(return_inverse=True)
    u = F.normalize(torch.randn(rows, DIM, generator=draw), dim=1).to(device)
    texts = F.normalize(torch.randn(len(distinct), DIM, generator=draw), dim=1).to(device)
    parts = LossForms(u, texts, keys.to(device), index.to(device))
    runs = {name: partial(parts.run, name) for name in (FOLDED, TILED, DENSE, PEER) if name in variants}
    alone = world_size() == 1 and size <= CHECKED
    facts = {"texts": len(distinct), "d": DIM, "ranks": world_size()}
    return PreparedCase(
        size, runs, facts, parts.check if alone else None, skipped=skipped_for_memory(size) if rank() == 0 else {}
    )


class LossForms:
    """The features of a batch, and its loss in each form."""

    def __init__(self, u: Tensor, texts: Tensor, keys: Tensor, index: Tensor) -> None:
        self.u, self.texts, self.keys, self.index = u, texts, keys, index

    def make_leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return fresh leaves (images, texts, scale), so that gradients never accumulate."""
        scale = torch.tensor(1 / 0.07, device=self.u.device)
        u, v, s = (x.detach().requires_grad_() for x in (self.u, self.texts, scale))
        return u, v, s

    def run(self, name: str) -> tuple[Tensor, ...]:
        """Return the loss and its gradients by images, texts and scale."""
        u, v, scale = self.make_leaves()
        loss = self.loss(name)(u, v, scale)
        loss.backward()
        return (loss.detach(), *(x.grad for x in (u, v, scale) if x.grad is not None))

    def loss(self, name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        forms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
            FOLDED: lambda u, v, s: both_ways(u, v, self.keys, s, index=self.index)["loss"],
            TILED: lambda u, v, s: both_ways(u, v[self.index], self.keys, s)["loss"],
            DENSE: lambda u, v, s: dense_unicl_loss(u, v[self.index], self.keys, s),
            PEER: lambda u, v, s: make_clip_loss()(u, v[self.index], s),
        }
        return forms[name]

    def check(self) -> dict[str, float]:
        """Compare folded and tiled with dense; and, with a key per row, with open_clip, whose loss has no labels."""
        found = [relative_gaps(self.run(name), self.run(DENSE)) for name in (FOLDED, TILED)]
        plain = LossForms(self.u, self.texts[self.index], torch.arange(len(self.u), device=self.u.device), self.index)
        plain.index = plain.keys
        found.append(relative_gaps(plain.run(FOLDED), plain.run(PEER)))
        return {key: max(each[key] for each in found) for key in ("forward", "gradients")}


def dense_unicl_loss(u: Tensor, v: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """Return the loss of UniCL's algorithm 1: one product, soft targets, autograd."""
    logits = scale * u @ v.T
    same = (keys[:, None] == keys).to(u.dtype)
    targets = same / same.sum(1, keepdim=True)
    return -(targets * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / (2 * len(u))


def make_clip_loss() -> Any:
    """Return open_clip's loss, over several ranks in its exact and cheaper form."""
    several = world_size() > 1
    return ClipLoss(local_loss=several, gather_with_grad=several, rank=rank(), world_size=world_size())


def relative_gaps(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the relative differences of two results (loss, gradients …)."""
    gaps = [float((x - y).norm() / y.norm().clamp(min=1e-12)) for x, y in zip(a, b, strict=True)]
    return {"forward": gaps[0], "gradients": max(gaps[1:])}
