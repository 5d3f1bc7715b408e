"""`bench loss`: the loss alone, forward and backward, at d = 512: folded, tiled, dense, and open_clip's.

The extra rows compare losses that know one positive per row, memeff's among them, and time one large product: the most
that the machine can do.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.core.dist import rank, world_size
from unicl_cli.core.machine import free_memory, machine_memory
from unicl_cli.formats import byte_size
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.label_sets import sets_case
from unicl_cli.jobs.bench.product import prepare_product, product_variants
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device
from unicl_cli.kernels.tiles import default_tile, in_kernel
from unicl_cli.losses.contrast import both_ways

DIM, CLASSES, SCALE = 512, 1000, 1 / 0.07
FOLDED, TILED, TORCH, DENSE, MEMEFF = "folded", "tiled", "torch tiles", "dense", "memeff"
"""folded: one column per distinct text, as in training. tiled: one per row. dense: as published, B x B targets.

torch tiles: folded without the kernel, where folded and tiled use it.
"""
PRODUCT = "product"
MATRICES = {DENSE: 7, PEER: 5}
"""Approximate number of B x B float matrices alive at once; a variant that needs too much memory is skipped."""
CHECKED = 4096
"""Larger batches are not checked against the dense form: that would take most of the time."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cases(request: Request) -> list[Case]:
    found = [Case(PRODUCT, "FLOP", product_variants(request), "bf16", partial(prepare_product, request), extra=True)]
    for size in request.sizes or (256, 1024, 4096):
        for processes in request.processes or (1,):
            several = f" on {processes}" if processes > 1 else ""
            shown = shown_variants(request, size, alone=processes == 1)
            prepare = partial(prepare_loss, request, size)
            found.append(Case(f"B={size}{several}", "rows", shown, reference_of(shown), prepare, 1, processes))
        pairs = shown_variants(request, size, alone=True, foreign=True)
        found.append(sets_case(request, size))
        make = partial(prepare_pairs, request, size)
        found.append(Case(f"pairs B={size}", "rows", pairs, reference_of(pairs), make, 1, extra=True))
    return found


def shown_variants(request: Request, size: int, *, alone: bool, foreign: bool = False) -> tuple[str, ...]:
    """Return the variants of a row, in order; those that would need too much memory are left out."""
    kernel = in_kernel(torch.empty(0, device=choose_device(request)), None)
    wanted = [FOLDED, TILED, *([TORCH] if kernel and alone else []), *([DENSE] if alone else [])]
    if foreign:
        wanted.remove(FOLDED)  # with a text per row there is nothing to fold
    if request.vs:
        wanted += [PEER, *([MEMEFF] if foreign else [])]
    return tuple(name for name in wanted if name not in skipped_for_memory(size))


def reference_of(variants: tuple[str, ...]) -> str:
    """Return the variant that the others are compared with."""
    known = [name for name in variants if name != MEMEFF]
    return DENSE if DENSE in known else known[-1]


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
    draw = torch.Generator().manual_seed(rank())
    rows = size // world_size()
    caption = torch.rand(rows, generator=draw) < 0.5
    classes = torch.randint(0, CLASSES, (rows,), generator=draw)
    keys = torch.where(caption, 2**40 + rank() * size + torch.arange(rows), classes)
    forms = make_forms(request, keys, draw)
    runs = {name: partial(forms.run, name) for name in (FOLDED, TILED, TORCH, DENSE, PEER) if name in variants}
    alone = world_size() == 1 and size <= CHECKED
    skipped = skipped_for_memory(size) if rank() == 0 else {}
    return PreparedCase(size, runs, forms.facts(), forms.check if alone else None, skipped=skipped)


def prepare_pairs(request: Request, size: int, variants: Collection[str]) -> PreparedCase:
    """Prepare ``size`` rows with one positive each, which every loss can do; ``flop`` is that of three products."""
    forms = make_forms(request, torch.arange(size), torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[], Any]] = {
        name: partial(forms.run, name) for name in (TILED, TORCH, DENSE, PEER) if name in variants
    }
    skipped = skipped_for_memory(size)
    facts: dict[str, Any] = {**forms.facts(), "flop": 3 * 2 * size**2 * DIM}
    if MEMEFF in variants:
        reason = why_not_memeff(forms)
        if reason is None:
            runs[MEMEFF] = forms.run_memeff
            facts["memeff_apart"] = relative_gaps(forms.run_memeff(), forms.run(TILED)[:3])
        else:
            skipped[MEMEFF] = reason
    return PreparedCase(size, runs, facts, forms.check if size <= CHECKED else None, skipped=skipped)


def make_forms(request: Request, keys: Tensor, draw: torch.Generator) -> LossForms:
    """Draw unit features for rows with these keys, one text for each key."""
    device, precision = choose_device(request), request.precision or "fp32"
    distinct, index = keys.unique(return_inverse=True)
    u, texts = (F.normalize(torch.randn(n, DIM, generator=draw), dim=1).to(device) for n in (len(keys), len(distinct)))
    dtype = DTYPES[precision]
    return LossForms(u.to(dtype), texts.to(dtype), keys.to(device), index.to(device))


class LossForms:
    """The features of a batch, and its loss in each form."""

    def __init__(self, u: Tensor, texts: Tensor, keys: Tensor, index: Tensor) -> None:
        self.u, self.texts, self.keys, self.index = u, texts, keys, index

    def facts(self) -> dict[str, Any]:
        names = {dtype: name for name, dtype in DTYPES.items()}
        return {"texts": len(self.texts), "d": DIM, "ranks": world_size(), "precision": names[self.u.dtype]}

    def make_leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return fresh leaves (images, texts, scale), so that gradients never accumulate."""
        scale = torch.full((), SCALE, device=self.u.device)
        u, v, s = (x.detach().requires_grad_() for x in (self.u, self.texts, scale))
        return u, v, s

    def run(self, name: str) -> tuple[Tensor, ...]:
        """Return the loss and its gradients by images, texts and scale."""
        u, v, scale = self.make_leaves()
        loss = self.loss(name)(u, v, scale)
        loss.backward()
        return (loss.detach(), *(x.grad for x in (u, v, scale) if x.grad is not None))

    def run_memeff(self) -> tuple[Tensor, ...]:
        """Return memeff's loss and its gradients by images and texts; its scale is a number that does not learn."""
        from memeff import MemoryEfficientCLIPLoss  # pyright: ignore[reportMissingImports]

        u, v, _ = self.make_leaves()
        form: Any = MemoryEfficientCLIPLoss(temperature=1 / SCALE, normalized_inputs=True, stable=False)
        loss: Tensor = form(u, v)
        loss.backward()
        return (loss.detach(), *(x.grad for x in (u, v) if x.grad is not None))

    def loss(self, name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        tile = default_tile(len(self.texts))
        forms: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
            FOLDED: lambda u, v, s: both_ways(u, v, self.keys, s, index=self.index)["loss"],
            TILED: lambda u, v, s: both_ways(u, v[self.index], self.keys, s)["loss"],
            TORCH: lambda u, v, s: both_ways(u, v, self.keys, s, index=self.index, tile=tile)["loss"],
            DENSE: lambda u, v, s: dense_unicl_loss(u, v[self.index], self.keys, s),
            PEER: lambda u, v, s: make_clip_loss()(u, v[self.index], s),
        }
        return forms[name]

    def check(self) -> dict[str, float]:
        """Compare all forms in float32, whatever is measured: folded and tiled with dense.

        With a key per row also with open_clip, whose loss has no labels.
        """
        whole = LossForms(self.u.float(), self.texts.float(), self.keys, self.index)
        found = [relative_gaps(whole.run(name), whole.run(DENSE)) for name in (FOLDED, TILED, TORCH)]
        every = torch.arange(len(self.u), device=self.u.device)
        plain = LossForms(whole.u, whole.texts[self.index], every, every)
        found.append(relative_gaps(plain.run(FOLDED), plain.run(PEER)))
        return {key: max(each[key] for each in found) for key in ("forward", "gradients")}


def why_not_memeff(forms: LossForms) -> str | None:
    """Return the reason that memeff cannot run here; None if it can."""
    if importlib.util.find_spec("memeff") is None:
        return "not installed"
    if forms.u.device.type != "cuda":
        return "needs a GPU"
    try:
        forms.run_memeff()
    except Exception as error:  # noqa: BLE001 - it is compiled here by another Triton than its authors'; the row says why
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def dense_unicl_loss(u: Tensor, v: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """Return the loss of UniCL's algorithm 1: one product, soft targets, autograd."""
    logits = (scale * u @ v.T).float()
    same = (keys[:, None] == keys).to(logits.dtype)
    targets = same / same.sum(1, keepdim=True)
    return -(targets * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / (2 * len(u))


def make_clip_loss() -> Any:
    """Return open_clip's loss, over several ranks in its exact and cheaper form."""
    from open_clip import ClipLoss  # its import takes seconds, which each fresh process would spend

    several = world_size() > 1
    return ClipLoss(local_loss=several, gather_with_grad=several, rank=rank(), world_size=world_size())


def relative_gaps(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the relative differences of two results (loss, gradients …)."""
    gaps = [float((x - y).norm() / y.norm().clamp(min=1e-12)) for x, y in zip(a, b, strict=True)]
    return {"forward": gaps[0], "gradients": max(gaps[1:])}
