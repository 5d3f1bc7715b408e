"""A recipe's own data and model: what its loader gives with each number of workers, and what a step of it takes."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from unicl_cli.build.data import worker_count
from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.contracts import Batch
from unicl_cli.core.loop import Plan, fit
from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError
from unicl_cli.jobs.bench.kinds import Asked
from unicl_cli.jobs.bench.protocol import Case, Ready, device_of, wall_seconds
from unicl_cli.jobs.bench.step import FOREVER, OURS, Silent, constant, nothing
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.jobs.train.setup import Parts, set_up
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.recipe.load import load

LEAST = 64
"""Images that a run of the loader takes at least."""


def cases(asked: Asked) -> list[Case]:
    """``loader``: wall time, since workers are other processes. ``step``: one batch again and again, on the device."""
    if load(str(asked.recipe), asked.overrides).stages:
        raise UniclError(f"bench {asked.kind} {asked.recipe}: it has several stages", "give a recipe with one")
    who = (OURS,)
    if asked.kind == "step":
        return [Case("step", "images", who, OURS, partial(stepping, asked), memory=2)]
    counts = dict.fromkeys((0, 1, cores()))
    rows = [Case(f"{n} workers", "images", who, OURS, partial(loading, asked, n)) for n in counts]
    return [*rows, Case("training", "images", who, OURS, partial(training, asked))]


@cache
def built(asked: Asked) -> tuple[Parts, Any]:
    """What `train` builds; the run directory that it needs is gone at the end."""
    recipe = load(str(asked.recipe), asked.overrides)
    accelerator = start_accelerator(recipe.precision, "cpu" if device_of(asked).type == "cpu" else "1")
    folder = Path(tempfile.mkdtemp(prefix="unicl-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return set_up(recipe, accelerator, folder, "never", recipe.model.init), accelerator


def arriving(parts: Parts, workers: int) -> Iterator[tuple[int, Batch]]:
    return stream_batches(parts.recipe, parts.data, parts.tokenizer, parts.step, 0, FOREVER, workers)


def facts_of(parts: Parts, batch: Batch) -> dict[str, Any]:
    texts, tokens = batch.tokens.shape
    return {"texts": texts, "tokens": tokens, "batch": parts.recipe.batch.size, "recipe": parts.recipe.name}


def loading(asked: Asked, workers: int, who: Collection[str]) -> Ready:
    """Batches as they come; what the workers have made while nobody asked does not count, since nobody waits long."""
    del who
    parts, _ = built(asked)
    size = parts.recipe.batch.size
    batches = arriving(parts, workers)
    several = max(1, -(-LEAST // size))

    def take() -> None:
        for _ in islice(batches, several):
            pass

    return Ready(several * size, {OURS: take}, {"workers": workers}, timer=wall_seconds)


class Shares:
    """A sink that keeps which share of its time the last line's steps waited for data, under a name."""

    def __init__(self, waited: dict[str, float], name: str) -> None:
        self.waited, self.name = waited, name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        del step
        self.waited[self.name] = values["data_frac"]

    def close(self) -> None: ...


def stepper(asked: Asked) -> tuple[Any, ...]:
    """(step, optimizer, plan, accelerator) as the loop takes them."""
    parts, accelerator = built(asked)
    step = accelerator.prepare(parts.step)
    optimizer = accelerator.prepare(build_optimizer(parts.recipe, step))
    plan = Plan(FOREVER, parts.recipe.seed, constant, grad_clip=parts.recipe.optim.clip_norm)
    return step, optimizer, plan, accelerator


def training(asked: Asked, who: Collection[str]) -> Ready:
    """Steps with their data, in wall time; the share of it that was spent waiting for data is a fact of the row."""
    del who
    parts, _ = built(asked)
    step, optimizer, plan, accelerator = stepper(asked)
    workers = worker_count(parts.recipe, accelerator.device, 1)
    batches = arriving(parts, workers)
    size = parts.recipe.batch.size
    several = max(2, -(-LEAST // size))
    waited: dict[str, float] = {}
    of_all = plan._replace(log_every=several)

    def steps() -> None:
        fit(step, islice(batches, several), optimizer, of_all, accelerator, Shares(waited, OURS), after=nothing)

    facts = {"workers": workers, "batch": size, "waited": waited}
    return Ready(several * size, {OURS: steps}, facts, timer=wall_seconds)


def stepping(asked: Asked, who: Collection[str]) -> Ready:
    del who
    parts, _ = built(asked)
    step, optimizer, plan, accelerator = stepper(asked)
    batch = next(arriving(parts, 0))[1]
    quiet = plan._replace(log_every=FOREVER)

    def one() -> None:
        fit(step, iter([(0, batch)]), optimizer, quiet, accelerator, Silent(), after=nothing)

    return Ready(parts.recipe.batch.size, {OURS: one}, facts_of(parts, batch))
