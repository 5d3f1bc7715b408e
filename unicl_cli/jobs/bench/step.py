"""`bench step`: a whole update of a two-tower model by our training loop, and by open_clip's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache
from open_clip import ClipLoss
from torch import Tensor

from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.contracts import NO_LABEL, Batch, Drawn, Sink
from unicl_cli.core.host_copy import to_device
from unicl_cli.core.loop import Plan, Step, fit
from unicl_cli.core.memory import is_out_of_memory
from unicl_cli.core.switches import compile_units
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
from unicl_cli.jobs.bench.profiling import count_waits, profile_run
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.losses.contrast import contrast
from unicl_cli.recipe.schema import Recipe

OURS, COMPILED, LOCKED = "unicl", "unicl, compiled", "open_clip, locked"
"""`locked` is open_clip's --lock-text: its text tower runs in each step but does not learn."""
CLIP_NORM, RATE = 1.0, 1e-4
FOREVER = 10**9
COUNTED = 8
"""Steps over which the host's waits are counted."""


class Row(NamedTuple):
    """``texts(rows)`` makes the texts. ``frozen``: no text tower learns. ``usual``: it runs without being named.

    ``compiled``: our step also runs with compiled blocks. ``largest``: the batch is the largest that fits.
    """

    texts: Callable[[int], LabelledTexts]
    frozen: bool = False
    usual: bool = False
    compiled: bool = False
    largest: bool = False

    def variants(self, vs: str | None) -> tuple[str, ...]:
        """Return the variants, the reference last."""
        peers = ((LOCKED, PEER) if self.frozen else (PEER,)) if vs else ()
        return (*((COMPILED,) if self.compiled else ()), OURS, *peers)


LABELS = partial(make_prompts, classes=1000, templates=80)
ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "captions": Row(make_captions, usual=True),
        "labels-100": Row(partial(make_prompts, classes=100, templates=1), usual=True),
        "labels-100-t80": Row(partial(make_prompts, classes=100, templates=80)),
        "labels-1000-t80": Row(LABELS),
        "mixed": Row(partial(mix_captions_and_prompts, classes=1000, templates=80)),
        "frozen-captions": Row(make_captions, frozen=True),
        "frozen-labels": Row(partial(make_prompts, classes=100, templates=80), frozen=True),
        "compiled-captions": Row(make_captions, compiled=True),
        "largest-captions": Row(make_captions, largest=True),
        "largest-labels": Row(LABELS, largest=True),
    }
)
"""Rows of labels: number of classes; prompts in one template, or (t80) in one of CLIP's 80 per row."""
PROFILE = "profile"
"""The row that says where the time of our step goes, and how often the host waits for the device."""
DOUBLINGS = 6
"""Maximum number of doublings of --batch in search of the largest one; none on a CPU, where hardly anything fails."""


def cases(request: Request) -> list[Case]:
    shape_of(request.model or "small")
    found: list[Case] = []
    for name, row in ROWS.items():
        variants = row.variants(request.vs)
        prepare = partial(prepare_step, request, row)
        found.append(Case(name, "images", variants, variants[-1], prepare, memory=2 * row.usual, extra=not row.usual))
    return [*found, Case(PROFILE, "images", (OURS,), OURS, partial(prepare_profile, request), extra=True)]


def choose_precision(request: Request) -> str:
    return request.precision or ("bf16" if choose_device(request).type == "cuda" else "fp32")


def prepare_step(request: Request, row: Row, variants: Collection[str]) -> PreparedCase:
    device, precision = choose_device(request), choose_precision(request)
    size = request.batch or 64
    pair = make_model_pair(request.model or "small", device, size, precision=precision, frozen_text=row.frozen)
    small = make_pair_batch(row.texts(size), pair.tokenizer, pair.recipe.data.image_size).to(device)
    peers = {LOCKED: pair.theirs, PEER: unlock(pair.theirs)} if row.frozen else {PEER: pair.theirs}
    modules = {OURS: pair.step}
    if COMPILED in variants:
        modules[COMPILED] = deepcopy(pair.step)
        compile_units(modules[COMPILED])

    def make_runs(batch: PairBatch) -> dict[str, Callable[[], Any]]:
        ours = {name: make_our_step(pair.recipe, modules[name], batch.batch, device) for name in modules}
        theirs = {name: make_their_step(pair, peers[name], batch, precision) for name in peers}
        every = ours | theirs
        return {name: every[name] for name in variants}

    def make_batch(rows: int) -> PairBatch:
        return make_pair_batch(row.texts(rows), pair.tokenizer, pair.recipe.data.image_size).to(device)

    batch = small
    if row.largest and device.type == "cuda":
        batch = make_batch(largest_batch(size, DOUBLINGS, lambda rows: runs_fit(make_runs, make_batch, rows)))
    facts = {**batch.facts(), "precision": precision, "model": request.model or "small", "batch": len(batch.tokens)}
    runs = make_runs(batch)
    return PreparedCase(
        len(batch.tokens), runs, facts, partial(compare_step, pair, small) if PEER in runs or LOCKED in runs else None
    )


def largest_batch(rows: int, doublings: int, fits: Callable[[int], bool]) -> int:
    """Return ``rows``, doubled as often as it fits, at most ``doublings`` times."""
    for _ in range(doublings):
        if not fits(2 * rows):
            break
        rows *= 2
    return rows


def runs_fit(
    make_runs: Callable[[PairBatch], Mapping[str, Callable[[], Any]]], make_batch: Callable[[int], PairBatch], rows: int
) -> bool:
    """Return True if one run of every variant has enough memory for ``rows`` rows."""
    try:
        for run in make_runs(make_batch(rows)).values():
            run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        clear_device_cache(garbage_collection=True)
    return True


def prepare_profile(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare our step on captions and labels; the facts say where its time goes and how often the host waits."""
    del variants
    device, size, precision = choose_device(request), request.batch or 64, choose_precision(request)
    pair = make_model_pair(request.model or "small", device, size, precision=precision)
    side = pair.recipe.data.image_size
    batch = make_pair_batch(ROWS["mixed"].texts(size), pair.tokenizer, side).to(device)
    run = make_our_step(pair.recipe, pair.step, batch.batch, device)
    run()  # allocates the optimizer's state
    facts = {**batch.facts(), "precision": precision, "model": request.model or "small", "profile": profile_run(run)}
    return PreparedCase(size, {OURS: run}, facts | count_host_waits(pair, batch.batch, device))


def count_host_waits(pair: ModelPair, batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return how often the host waits for the device in a step, without a logged line and with one; None on a CPU."""
    if device.type != "cuda":
        return {"host_waits": None, "host_waits_logged": None}
    counts: dict[str, float] = {}
    for name, every in (("host_waits", FOREVER), ("host_waits_logged", 1)):
        loop = make_our_loop(pair.recipe, pair.step, device, log_every=every)
        loop(iter([(0, batch)]), SilentSink())  # the first update has no state to skip with
        with count_waits(device) as waits:
            loop(((n, batch) for n in range(1, 1 + COUNTED)), SilentSink())
        counts[name] = len(waits) / COUNTED
    return counts


class PairBatch(NamedTuple):
    """One batch for both models: ``batch`` as our loader gives it, and the 77 tokens of every row for open_clip."""

    batch: Batch
    tokens: Tensor

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(to_device(self.batch, device), self.tokens.to(device))

    def facts(self) -> dict[str, Any]:
        texts, length = self.batch.tokens.shape
        return {"texts": texts, "tokens": length, "classes": int(self.batch.keys.unique().numel())}


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
    loops: list[Any] = []

    def run() -> None:
        if not loops:  # the loop changes the module to autocast, and the check before the first run is in float32
            loops.append(make_our_loop(recipe, step, device, log_every=FOREVER))
        loops[0](iter([(0, batch)]), SilentSink())

    return run


def make_our_loop(
    recipe: Recipe, step: Step, device: torch.device, *, log_every: int
) -> Callable[[Iterator[tuple[int, Batch]], Sink], Any]:
    """Return the training loop as a function of batches and a sink."""
    accelerator = start_accelerator(recipe.precision, "cpu" if device.type == "cpu" else "1")
    prepared = accelerator.prepare(step)
    optimizer = accelerator.prepare(build_optimizer(recipe, prepared))
    plan = Plan(steps=FOREVER, seed=0, lr=constant_lr, grad_clip=CLIP_NORM, log_every=log_every, due=never)
    return lambda batches, sink: fit(prepared, batches, optimizer, plan, accelerator, sink, after=do_nothing)


def constant_lr(step: int) -> float:
    """Return a constant learning rate, at no cost."""
    del step
    return RATE


def do_nothing(step: int) -> None:
    """Do nothing after a step."""


def never(step: int) -> bool:
    """Return False: no step is followed by work that needs its outcome."""
    del step
    return False


def unlock(model: Any) -> Any:
    """Return a copy of the model in which all weights learn."""
    return deepcopy(model).requires_grad_(True)  # noqa: FBT003 - torch's own signature


def make_their_step(pair: ModelPair, model: Any, batch: PairBatch, precision: str) -> Callable[[], Any]:
    """Return one step of open_clip on a fixed batch. Images come normalised, as from its loader."""
    update = make_their_update(model, batch.tokens.device, precision)
    images: list[Tensor] = []

    def step() -> None:
        if not images:  # made at the first run: floats of a batch that does not fit must not stop the others
            images.append(pair.ours.pixels(batch.batch.images))
        update(images[0], batch.tokens)

    return step


def make_their_update(model: Any, device: torch.device, precision: str) -> Callable[[Tensor, Tensor], None]:
    """Return one step of open_clip_train 3.3.0 (`main.py`, `train_one_epoch`): its groups, default AdamW and loss."""
    loss = ClipLoss(cache_labels=True)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    bare = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    ids = {id(p) for p in bare}
    rest = [p for _, p in named if id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": bare, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)

    def update(images: Tensor, tokens: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            losses = loss(**model(images, tokens), output_dict=True)
            total: Any = sum(losses.values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    return update


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
