"""Benchmarks of a recipe's own data and model: its loader with each number of workers, and its training step."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.build.workers import worker_count
from unicl_cli.contracts import Batch
from unicl_cli.core.loop import Plan, fit
from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of
from unicl_cli.jobs.bench.kinds import Request
from unicl_cli.jobs.bench.protocol import WALL, Case, PreparedCase, choose_device, wall_seconds
from unicl_cli.jobs.bench.step import FOREVER, OURS, SilentSink, constant_lr, do_nothing, never
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.jobs.train.setup import Parts, set_up
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.recipe.load import load

MIN_IMAGES = 64
"""Minimum number of images in one run of the loader."""


def cases(request: Request) -> list[Case]:
    """Return the cases: the loader in wall time (workers are other processes), or steps on one batch."""
    if load(str(request.recipe), request.overrides).stages:
        raise UniclError(f"bench {request.kind} {request.recipe}: has several stages", "give a recipe with one stage")
    variants = (OURS,)
    if request.kind == "step":
        return [Case("step", "images", variants, OURS, partial(prepare_recipe_step, request), memory=2)]
    counts = dict.fromkeys((0, 1, cores()))
    rows = [Case(count_of(n, "worker"), "images", variants, OURS, partial(prepare_loading, request, n)) for n in counts]
    return [*rows, Case("training", "images", variants, OURS, partial(prepare_training, request))]


@cache
def build_parts(request: Request) -> tuple[Parts, Any]:
    """Build what `train` builds, in a temporary run directory that is removed at exit."""
    recipe = load(str(request.recipe), request.overrides)
    accelerator = start_accelerator(recipe.precision, "cpu" if choose_device(request).type == "cpu" else "1")
    folder = Path(tempfile.mkdtemp(prefix="unicl-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return set_up(recipe, accelerator, folder, "never", recipe.model.init), accelerator


def endless_batches(parts: Parts, workers: int) -> Iterator[tuple[int, Batch]]:
    return stream_batches(parts.recipe, parts.data, parts.tokenizer, parts.step, 0, FOREVER, workers)


def batch_facts(parts: Parts, batch: Batch) -> dict[str, Any]:
    texts, tokens = batch.tokens.shape
    return {"texts": texts, "tokens": tokens, "batch": parts.recipe.batch.size, "recipe": parts.recipe.name}


def prepare_loading(request: Request, workers: int, variants: Collection[str]) -> PreparedCase:
    """Prepare the loader alone: batches are taken as they arrive, at once, so that no prefetched ones are counted."""
    del variants
    parts, _ = build_parts(request)
    size = parts.recipe.batch.size
    batches = endless_batches(parts, workers)
    several = max(1, -(-MIN_IMAGES // size))

    def take() -> None:
        for _ in islice(batches, several):
            pass

    return PreparedCase(several * size, {OURS: take}, {"workers": workers, "clock": WALL}, timer=wall_seconds)


class WaitSink:
    """A sink that keeps one value by name: the share of time that the last logged steps waited for data."""

    def __init__(self, waited: dict[str, float], name: str) -> None:
        self.waited, self.name = waited, name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        del step
        self.waited[self.name] = values["data_frac"]

    def close(self) -> None: ...


def build_loop(request: Request) -> tuple[Any, ...]:
    """Return (step, optimizer, plan, accelerator) as the training loop takes them."""
    parts, accelerator = build_parts(request)
    step = accelerator.prepare(parts.step)
    optimizer = accelerator.prepare(build_optimizer(parts.recipe, step))
    plan = Plan(FOREVER, parts.recipe.seed, constant_lr, grad_clip=parts.recipe.optim.clip_norm, due=never)
    return step, optimizer, plan, accelerator


def prepare_training(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare steps with their data, in wall time; the row's facts hold the share spent waiting for data."""
    del variants
    parts, _ = build_parts(request)
    step, optimizer, plan, accelerator = build_loop(request)
    workers = worker_count(parts.recipe, accelerator.device, 1)
    batches = endless_batches(parts, workers)
    size = parts.recipe.batch.size
    several = max(2, -(-MIN_IMAGES // size))
    waited: dict[str, float] = {}
    of_all = plan._replace(log_every=several)

    def steps() -> None:
        fit(step, islice(batches, several), optimizer, of_all, accelerator, WaitSink(waited, OURS), after=do_nothing)

    facts = {"workers": workers, "batch": size, "waited": waited, "clock": WALL}
    return PreparedCase(several * size, {OURS: steps}, facts, timer=wall_seconds)


def prepare_recipe_step(request: Request, variants: Collection[str]) -> PreparedCase:
    del variants
    parts, _ = build_parts(request)
    step, optimizer, plan, accelerator = build_loop(request)
    batch = next(endless_batches(parts, 0))[1]
    quiet = plan._replace(log_every=FOREVER)

    def one() -> None:
        fit(step, iter([(0, batch)]), optimizer, quiet, accelerator, SilentSink(), after=do_nothing)

    return PreparedCase(parts.recipe.batch.size, {OURS: one}, batch_facts(parts, batch))
