"""Rows `sets` of `bench loss`: UniCL with one label per row, with captions on their own level, with five labels."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import ALL_GROUPS, NO_KEY, NO_LABEL
from unicl_cli.core.batch_columns import HASH_KEYS
from unicl_cli.jobs.bench.kinds import Request
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device
from unicl_cli.kernels.targets import Target
from unicl_cli.losses.contrast import both_ways

ONE, OWN, SETS = "one label", "own text", "five labels"
DIM, SCALE, SHARE = 512, 1 / 0.07, 0.5
GROUPS, CLASSES_OF_GROUP = 5, 200
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def sets_case(request: Request, size: int) -> Case:
    """Return the case of ``size`` rows with a label in each of five groups; half show a caption, half a prompt."""
    return Case(f"sets B={size}", "rows", (ONE, OWN, SETS), ONE, partial(prepare_sets, request, size), 1)


def prepare_sets(request: Request, size: int, variants: Collection[str]) -> PreparedCase:
    batch = LabelledBatch(request, size)
    runs = {name: partial(batch.run, name) for name in (ONE, OWN, SETS) if name in variants}
    facts = {"texts": len(batch.texts), "d": DIM, "groups": GROUPS, "classes": GROUPS * CLASSES_OF_GROUP}
    return PreparedCase(size, runs, facts, batch.check)


class LabelledBatch:
    """The features of a batch whose rows have five labels, and its loss with more or less of them."""

    def __init__(self, request: Request, size: int) -> None:
        draw, device = torch.Generator().manual_seed(0), choose_device(request)
        first = torch.arange(GROUPS) * CLASSES_OF_GROUP
        self.labels = (first + torch.randint(0, CLASSES_OF_GROUP, (size, GROUPS), generator=draw)).to(device)
        caption = (torch.arange(size) % 2 == 0).to(device)
        picked = torch.randint(0, GROUPS, (size, 1), generator=draw).to(device)
        shown = self.labels.gather(1, picked)[:, 0].masked_fill(caption, NO_LABEL)
        rows = torch.arange(size, device=device)
        _, self.index = torch.where(caption, rows + GROUPS * CLASSES_OF_GROUP, shown).unique(return_inverse=True)
        dtype, texts = DTYPES[request.precision or "fp32"], int(self.index.max()) + 1
        self.u, self.texts = (
            F.normalize(torch.randn(n, DIM, generator=draw), dim=1).to(device, dtype) for n in (size, texts)
        )
        self.keys = torch.where(caption, self.labels[:, 0], shown)
        captions = torch.where(caption, HASH_KEYS | rows, NO_KEY)
        share = caption.float() * SHARE
        known = torch.full((size,), ALL_GROUPS, device=device)
        groups = torch.arange(GROUPS, device=device).repeat_interleave(CLASSES_OF_GROUP)
        weights = torch.ones(len(groups), device=device)
        self.targets = {
            ONE: None,
            OWN: Target(captions, share, self.keys[:, None]),
            SETS: Target(captions, share, self.labels, weights, shown, known, groups, GROUPS),
        }

    def run(self, name: str) -> tuple[Tensor, ...]:
        """Return the loss and its gradients by images, texts and scale."""
        return self.loss(self.targets[name])

    def loss(self, target: Target | None) -> tuple[Tensor, ...]:
        scale = torch.full((), SCALE, device=self.u.device)
        leaves = [x.detach().requires_grad_() for x in (self.u, self.texts, scale)]
        u, v, s = leaves
        loss = both_ways(u, v, self.keys, s, index=self.index, target=target)["loss"]
        loss.backward()
        return (loss.detach(), *(x.grad for x in leaves if x.grad is not None))

    def check(self) -> dict[str, float]:
        """Compare the loss of keys with that of a target with the same positives."""
        plain = Target(self.keys, torch.zeros(len(self.u), device=self.u.device), self.keys[:, None])
        pairs = list(zip(self.loss(None), self.loss(plain), strict=True))
        gaps = [float((x - y).norm() / y.norm().clamp(min=1e-12)) for x, y in pairs]
        return {"forward": gaps[0], "gradients": max(gaps[1:])}
