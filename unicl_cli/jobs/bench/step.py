"""`bench step`: a whole update of a two-tower model by our training loop, and by open_clip's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from open_clip import ClipLoss
from torch import Tensor

from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.contracts import NO_LABEL, Batch, Drawn, Sink
from unicl_cli.core.loop import Plan, Step, fit
from unicl_cli.data.collate import collate
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.jobs.bench.captions import LabelledTexts, make_captions, make_prompts, mix_captions_and_prompts
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.model_pair import (
    ModelPair,
    compare_pair,
    make_model_pair,
    pad_to_context,
    shape_of,
    zero_grads,
)
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.losses import contrast
from unicl_cli.recipe.schema import Recipe

OURS, LOCKED = "unicl", "open_clip, locked"
"""`locked` is open_clip's --lock-text: its text tower runs in each step but does not learn."""
CLIP_NORM, RATE = 1.0, 1e-4
FOREVER = 10**9


class TextKind(NamedTuple):
    """``texts(rows)`` makes the texts. ``frozen``: no text tower learns. ``usual``: it runs without being named."""

    texts: Callable[[int], LabelledTexts]
    frozen: bool = False
    usual: bool = False


ROWS: Mapping[str, TextKind] = MappingProxyType(
    {
        "captions": TextKind(make_captions, usual=True),
        "labels-100": TextKind(partial(make_prompts, classes=100, templates=1), usual=True),
        "labels-100-t80": TextKind(partial(make_prompts, classes=100, templates=80)),
        "labels-1000-t80": TextKind(partial(make_prompts, classes=1000, templates=80)),
        "mixed": TextKind(partial(mix_captions_and_prompts, classes=1000, templates=80)),
        "frozen-captions": TextKind(make_captions, frozen=True),
        "frozen-labels": TextKind(partial(make_prompts, classes=100, templates=80), frozen=True),
    }
)
"""Rows of labels: number of classes; prompts in one template, or (t80) in one of CLIP's 80 per row."""


def cases(request: Request) -> list[Case]:
    shape_of(request.model or "small")
    found: list[Case] = []
    for name, row in ROWS.items():
        peers = ((LOCKED, PEER) if row.frozen else (PEER,)) if request.vs else ()
        variants = (OURS, *peers)
        prepare = partial(prepare_step, request, row)
        found.append(Case(name, "images", variants, variants[-1], prepare, memory=2 * row.usual, extra=not row.usual))
    return found


def prepare_step(request: Request, row: TextKind, variants: Collection[str]) -> PreparedCase:
    device = choose_device(request)
    size = request.batch or 64
    precision = request.precision or ("bf16" if device.type == "cuda" else "fp32")
    pair = make_model_pair(request.model or "small", device, size, precision=precision, frozen_text=row.frozen)
    batch = make_pair_batch(row.texts(size), pair.tokenizer, pair.recipe.data.image_size).to(device)
    runs: dict[str, Callable[[], Any]] = {}
    if OURS in variants:
        runs[OURS] = make_our_step(pair.recipe, pair.step, batch.batch, device)
    peers = {LOCKED: pair.theirs, PEER: unlock(pair.theirs)} if row.frozen else {PEER: pair.theirs}
    for name in variants:
        if name in peers:
            runs[name] = make_their_step(pair, peers[name], batch, precision)
    facts = {**batch.facts(), "precision": precision, "model": request.model or "small"}
    return PreparedCase(size, runs, facts, partial(compare_step, pair, batch) if len(runs) > 1 else None)


class PairBatch(NamedTuple):
    """One batch for both models: ``batch`` as our loader gives it, and the 77 tokens of every row for open_clip."""

    batch: Batch
    tokens: Tensor

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(Batch(*(_to_device(x, device) for x in self.batch)), self.tokens.to(device))

    def facts(self) -> dict[str, Any]:
        texts, length = self.batch.tokens.shape
        return {"texts": texts, "tokens": length, "classes": int(self.batch.keys.unique().numel())}


def _to_device(x: Any, device: torch.device) -> Any:
    return x.to(device) if isinstance(x, Tensor) else x


def make_pair_batch(texts: LabelledTexts, tokenizer: TextTokenizer, image_size: int) -> PairBatch:
    """Make a batch of random images, with its texts collated as in training."""
    draw = torch.Generator().manual_seed(0)
    rows = len(texts.texts)
    images = torch.randint(256, (rows, 3, image_size, image_size), dtype=torch.uint8, generator=draw)
    drawn = [
        Drawn(row=n, draw=n, seed=0, image=images[n], label=label, text=text, text_hash=0, media={})
        for n, (text, label) in enumerate(zip(*texts, strict=True))
    ]
    batch = collate(drawn, images, tokenizer=tokenizer, caption_targets="unique", extra=None)
    return PairBatch(batch, pad_to_context(tokenizer(texts.texts)))


class SilentSink:
    """A sink that discards everything."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def make_our_step(recipe: Recipe, step: Step, batch: Batch, device: torch.device) -> Callable[[], Any]:
    """Return one pass of the training loop, with everything that the loop does around an update."""
    loop = make_our_loop(recipe, step, device, log_every=FOREVER)
    return lambda: loop(iter([(0, batch)]), SilentSink())


def make_our_loop(
    recipe: Recipe, step: Step, device: torch.device, *, log_every: int
) -> Callable[[Iterator[tuple[int, Batch]], Sink], Any]:
    """Return the training loop as a function of batches and a sink."""
    accelerator = start_accelerator(recipe.precision, "cpu" if device.type == "cpu" else "1")
    prepared = accelerator.prepare(step)
    optimizer = accelerator.prepare(build_optimizer(recipe, prepared))
    plan = Plan(steps=FOREVER, seed=0, lr=constant_lr, grad_clip=CLIP_NORM, log_every=log_every)
    return lambda batches, sink: fit(prepared, batches, optimizer, plan, accelerator, sink, after=do_nothing)


def constant_lr(step: int) -> float:
    """Return a constant learning rate, at no cost."""
    del step
    return RATE


def do_nothing(step: int) -> None:
    """Do nothing after a step."""


def unlock(model: Any) -> Any:
    """Return a copy of the model in which all weights learn."""
    return deepcopy(model).requires_grad_(True)  # noqa: FBT003 - torch's own signature


def make_their_step(pair: ModelPair, model: Any, batch: PairBatch, precision: str) -> Callable[[], Any]:
    """Return one step of open_clip_train 3.3.0 (`main.py`, `train_one_epoch`): its groups, default AdamW and loss.

    Images come normalised, as from its loader.
    """
    loss, device = ClipLoss(cache_labels=True), batch.tokens.device
    images = pair.ours.pixels(batch.batch.images)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    bare = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    ids = {id(p) for p in bare}
    rest = [p for _, p in named if id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": bare, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            losses = loss(**model(images, batch.tokens), output_dict=True)
            total: Any = sum(losses.values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    return step


def compare_step(pair: ModelPair, batch: PairBatch) -> dict[str, float]:
    """Compare features and all gradients in float32; open_clip's model gets the same loss, computed densely."""
    images = pair.ours.pixels(batch.batch.images)
    zero_grads(pair.step, pair.theirs)
    ours = pair.step(batch.batch)
    ours["loss"].backward()
    out = pair.theirs(images, batch.tokens)
    u, v, scale = out["image_features"], out["text_features"], out["logit_scale"]
    keys = batch.batch.keys
    if bool((batch.batch.labels == NO_LABEL).all()):
        loss = ClipLoss()(u, v, scale)
    else:  # open_clip has no loss for labels: take the published one, densely
        loss = (contrast(u, v, keys, keys, scale).mean() + contrast(v, u, keys, keys, scale).mean()) / 2
    loss.backward()
    with torch.no_grad():
        embed = pair.ours.encode_text(batch.batch.tokens).embed[batch.batch.text_index]
        mine = torch.cat([pair.ours.encode_image(batch.batch.images).embed, embed])
    found = compare_pair(pair, mine, torch.cat([u, v]))
    zero_grads(pair.step, pair.theirs)
    return found | {"loss": abs(float(ours["loss"].detach()) - float(loss.detach()))}
