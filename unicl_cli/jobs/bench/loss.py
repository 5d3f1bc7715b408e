"""The loss alone, forward and backward, float32, d = 512: in tiles, with texts folded, densely, and open_clip's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from open_clip import ClipLoss
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.core.byte_size import binary_size
from unicl_cli.core.dist import rank, world_size
from unicl_cli.core.machine import free_memory, machine_memory
from unicl_cli.jobs.bench.kinds import PEER, Asked
from unicl_cli.jobs.bench.protocol import Case, Ready, device_of
from unicl_cli.losses import both_ways

DIM, CLASSES = 512, 1000
FOLDED, TILED, DENSE = "folded", "tiled", "dense"
"""In training: each distinct text is a column once; a column for each row; as published, with B x B targets."""
MATRICES = {DENSE: 7, PEER: 5}
"""B x B matrices of floats alive at once, about; what takes more memory than there is does not run."""
CHECKED = 4096
"""Larger batches are not compared with the dense form, which would be what takes the time."""


def cases(asked: Asked) -> list[Case]:
    who = (FOLDED, TILED, DENSE, *((PEER,) if asked.vs else ()))
    found: list[Case] = []
    for size in asked.sizes or (256, 1024, 4096):
        for processes in asked.processes or (1,):
            several = f" on {processes}" if processes > 1 else ""
            fitting = tuple(name for name in who if name not in too_large(size))
            shown = fitting if processes == 1 else tuple(name for name in fitting if name != DENSE)
            reference = DENSE if DENSE in shown else shown[-1]
            prepare = partial(prepared, asked, size)
            found.append(Case(f"B={size}{several}", "rows", shown, reference, prepare, 1, processes))
    return found


def too_large(size: int) -> dict[str, str]:
    """Who does not run at this batch, and why."""
    cuda = torch.cuda.is_available()
    room = torch.cuda.mem_get_info()[0] if cuda else free_memory() or machine_memory() or math.inf
    wanted = {name: 4 * count * size**2 for name, count in MATRICES.items()}
    return {
        name: f"takes about {binary_size(need)}, more than half of the {binary_size(room)} that are free"
        for name, need in wanted.items()
        if need > room / 2
    }


def prepared(asked: Asked, size: int, who: Collection[str]) -> Ready:
    """This rank's share of ``size`` rows: half captions, half of 1,000 classes that have one text each."""
    device = device_of(asked)
    draw = torch.Generator().manual_seed(rank())
    rows = size // world_size()
    caption = torch.rand(rows, generator=draw) < 0.5
    classes = torch.randint(0, CLASSES, (rows,), generator=draw)
    keys = torch.where(caption, 2**40 + rank() * size + torch.arange(rows), classes)
    distinct, index = keys.unique(return_inverse=True)
    u = F.normalize(torch.randn(rows, DIM, generator=draw), dim=1).to(device)
    texts = F.normalize(torch.randn(len(distinct), DIM, generator=draw), dim=1).to(device)
    parts = Parts(u, texts, keys.to(device), index.to(device))
    runs = {name: partial(parts.run, name) for name in (FOLDED, TILED, DENSE, PEER) if name in who}
    alone = world_size() == 1 and size <= CHECKED
    facts = {"texts": len(distinct), "d": DIM, "ranks": world_size()}
    return Ready(size, runs, facts, parts.checked if alone else None, skipped=too_large(size) if rank() == 0 else {})


class Parts:
    """Features of a batch, and the loss of it in each form."""

    def __init__(self, u: Tensor, texts: Tensor, keys: Tensor, index: Tensor) -> None:
        self.u, self.texts, self.keys, self.index = u, texts, keys, index

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh ones, so that no gradient adds to another."""
        scale = torch.tensor(1 / 0.07, device=self.u.device)
        u, v, s = (x.detach().requires_grad_() for x in (self.u, self.texts, scale))
        return u, v, s

    def run(self, name: str) -> tuple[Tensor, ...]:
        """(loss, and its gradients by images, texts and scale)."""
        u, v, scale = self.leaves()
        loss = self.loss(name)(u, v, scale)
        loss.backward()
        return (loss.detach(), *(x.grad for x in (u, v, scale) if x.grad is not None))

    def loss(self, name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        forms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
            FOLDED: lambda u, v, s: both_ways(u, v, self.keys, s, index=self.index)["loss"],
            TILED: lambda u, v, s: both_ways(u, v[self.index], self.keys, s)["loss"],
            DENSE: lambda u, v, s: published(u, v[self.index], self.keys, s),
            PEER: lambda u, v, s: peer()(u, v[self.index], s),
        }
        return forms[name]

    def checked(self) -> dict[str, float]:
        """Folded and tiled against dense; with keys of their own also against open_clip, whose loss knows no labels."""
        found = [relative(self.run(name), self.run(DENSE)) for name in (FOLDED, TILED)]
        plain = Parts(self.u, self.texts[self.index], torch.arange(len(self.u), device=self.u.device), self.index)
        plain.index = plain.keys
        found.append(relative(plain.run(FOLDED), plain.run(PEER)))
        return {key: max(each[key] for each in found) for key in ("forward", "gradients")}


def published(u: Tensor, v: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """UniCL's algorithm 1: one product, soft targets, autograd."""
    logits = scale * u @ v.T
    same = (keys[:, None] == keys).to(u.dtype)
    targets = same / same.sum(1, keepdim=True)
    return -(targets * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / (2 * len(u))


def peer() -> Any:
    """open_clip's loss, over several ranks in its exact and cheaper form."""
    several = world_size() > 1
    return ClipLoss(local_loss=several, gather_with_grad=several, rank=rank(), world_size=world_size())


def relative(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> dict[str, float]:
    """Of (loss, gradients …): how far apart."""
    gaps = [float((x - y).norm() / y.norm().clamp(min=1e-12)) for x, y in zip(a, b, strict=True)]
    return {"forward": gaps[0], "gradients": max(gaps[1:])}
