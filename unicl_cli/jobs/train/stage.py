"""The course of one stage: the loop with what is told, watched and kept around it."""

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from unicl_cli.build.data import worker_count
from unicl_cli.build.optimizer import rate, warmup_of
from unicl_cli.contracts import NO_KEY, NO_LABEL, Batch
from unicl_cli.core.dist import bare, gather, rank, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.guard import BadSteps, Diverged, Figures, Guard
from unicl_cli.core.loop import Plan, Step, fit
from unicl_cli.core.sinks import ConsoleSink, JsonlSink, Sinks, StatusSink
from unicl_cli.core.trackers import TrackerSink
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.jobs.train.keeper import Keeper, Rollback
from unicl_cli.jobs.train.setup import Parts, stream
from unicl_cli.launch.stopping import StopFlag
from unicl_cli.recipe.text import as_mapping
from unicl_cli.runs.folder import METRICS, STATUS, VALIDATIONS
from unicl_cli.yaml_lines import leaves


def guard_of(parts: Parts) -> Guard:
    """What a recipe lets its run get away with."""
    wanted = parts.recipe.guard
    bad = BadSteps(0, 0.0) if wanted.on_bad == "stop" else BadSteps(wanted.max_bad_steps, wanted.max_bad_share)
    scale: Any = parts.recipe.model.part.options.get("logit_scale")
    return Guard(bad, Figures(getattr(scale, "max", None), warmup_of(parts.recipe, parts.steps)))


def sources_of(parts: Parts, step: int) -> str:
    """Of which files how much of the global batch number ``step`` came."""
    strands, rows = parts.data.order.batch(step)
    places = zip((parts.data.mix.strands[n] for n in strands), rows.tolist(), strict=True)
    shards = [s.table.shard_of(row if s.rows is None else int(s.rows[row])) for s, row in places]
    names, counts = np.unique([f"{p.parents[2].name}/{p.name.rsplit('-', 3)[0]}" for p in shards], return_counts=True)
    return ", ".join(f"{name} {count / len(shards):.0%}" for name, count in zip(names, counts, strict=True))


def describe(batch: Batch, pad_id: int | None) -> dict[str, Tensor]:
    """What a line says of a batch: rows with a label, positives a row, distinct texts a row, padding among the tokens.

    The positives are those of the global batch, the row itself included.
    """
    keys = gather(batch.keys)
    _, counts = torch.unique(keys[keys != NO_KEY], return_counts=True)
    rows = counts.sum().clamp(min=1)
    facts = {
        "label_share": (batch.labels != NO_LABEL).float().mean(),
        "positives": counts.square().sum() / rows,
        "single_positive": (counts == 1).sum() / rows,
    }
    if pad_id is None:
        return facts
    distinct = torch.tensor(len(batch.tokens) / len(batch.labels))
    return {**facts, "unique_text": distinct, "padding": (batch.tokens == pad_id).float().mean()}


class WatchSink:
    """Tells of updates left out, of spikes, of a logit scale that sticks; a spike to be answered goes to the keeper."""

    def __init__(self, keeper: Keeper, say: Callable[[str], None]) -> None:
        self.keeper, self.say = keeper, say
        recipe = keeper.parts.recipe
        self.answer = recipe.guard.on_spike
        self.bad = {"loss": "loss"} if recipe.precision == "fp16" else Figures.SPIKING  # its scaler looks for overflows

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, words in self.bad.items():
            if not math.isfinite(values.get(name, 0.0)):
                self.say(f"warning: step {step}: the {words} is not finite: its update is left out")
                break
        spikes, scale = self.keeper.guard.figures.watch(step, values)
        if scale is not None:
            self.say(f"warning: step {step}: {scale}")
        if not spikes or self.answer == "ignore":
            return
        sources = sources_of(self.keeper.parts, step - 1 + self.keeper.offset)
        for spike in spikes:
            self.say(f"warning: step {step}: {spike.words}; the batch: {sources}")
        if self.answer == "rollback":
            self.keeper.calm_step = min(spike.calm_step for spike in spikes)
        else:
            self.say("  hint: if it stays there, lower optim.lr or lengthen schedule.warmup")

    def close(self) -> None:
        """Keeps nothing."""


class Stage:
    """What happens around the loop of one stage, on every rank."""

    def __init__(self, parts: Parts, run: Path, accelerator: Any, optimizer: Any, average: Average | None) -> None:
        self.parts, self.run_dir, self.accelerator, self.optimizer = parts, run, accelerator, optimizer
        self.keeper = Keeper(parts, run, accelerator, optimizer, average, guard_of(parts))
        self.status: StatusSink | None = None

    def run(self, facts: Mapping[str, Any] | None, stop: StopFlag, *, quiet: bool) -> None:
        """From a checkpoint's ``facts`` (None: step 0) to the end, or to a stop: raises Stopped, the state written."""
        done, steps = 0 if facts is None else int(facts["step"]), self.parts.steps
        if rank() == 0:
            self.status = StatusSink(self.run_dir / STATUS, steps, world_size())
        try:
            if facts is not None:
                self.keeper.restore(facts)
            done = self.laps(done, stop, quiet=quiet)
            self.keeper.end(done)
        except Exception as error:
            self.failed(error)
            raise
        finally:
            self.keeper.saver.close()
        if done < steps:
            self.tell("stopped", step=done, signal=stop.signal)
            raise Stopped(f"stopped after step {done} of {steps}", "the same command goes on from there")
        self.tell("done", step=done)

    def tell(self, state: str, **facts: Any) -> None:
        """Rank 0's `status.json`."""
        if self.status is not None:
            self.status.set_state(state, **facts)

    def failed(self, error: Exception) -> None:
        """What can still be written when a run fails; a full disk may have been the reason."""
        with contextlib.suppress(UniclError):
            if rank() == 0 and isinstance(error, Diverged):
                self.keeper.record(error)
            self.tell("failed")

    def laps(self, done: int, stop: StopFlag, *, quiet: bool) -> int:
        """The completed steps when the loop ends; it begins anew after each rollback."""
        first = True
        while True:
            sinks = self.sinks(done, quiet=quiet, first=first)
            try:
                return self.lap(done, stop, sinks)
            except Rollback as spike:
                done, first = self.keeper.go_back(spike), False
            finally:
                sinks.close()

    def lap(self, done: int, stop: StopFlag, sinks: Sinks) -> int:
        """The loop from step ``done`` on."""
        parts, recipe, keeper = self.parts, self.parts.recipe, self.keeper
        workers = worker_count(recipe, self.accelerator.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        step, offset = parts.step, keeper.offset
        data = stream(recipe, parts.data, parts.tokenizer, step, done, parts.steps, workers, offset=offset)
        plan = Plan(
            steps=parts.steps,
            seed=recipe.seed,
            lr=rate(recipe, parts.steps),
            grad_clip=recipe.optim.clip_norm,
            log_every=recipe.log.every,
            describe=partial(describe, pad_id=getattr(parts.tokenizer, "pad_id", None)),
            each=keeper.each,
            due=keeper.due,
            save=keeper.wanted,
            guard=keeper.guard.bad,
        )
        self.tell("running", step=done)
        keeper.catch_up(done)
        return fit(parts.step, data, self.optimizer, plan, self.accelerator, sinks, after=keeper.after, stopping=stop)

    def sinks(self, done: int, *, quiet: bool, first: bool) -> Sinks:
        """Rank 0 writes; the others log nowhere."""
        if self.status is None:
            return Sinks([])
        if not done:  # what a run that never came to a checkpoint left
            (self.run_dir / VALIDATIONS).unlink(missing_ok=True)
        recipe, console = self.parts.recipe, ConsoleSink(self.parts.steps, done, quiet=quiet)
        for note in notes(self.parts) if first else ():
            console.say(note)
        trackers = TrackerSink(recipe.log.trackers, self.run_dir, recipe.log.project, leaves(as_mapping(recipe)), done)
        self.keeper.say, self.keeper.track = console.say, trackers.log
        metrics = JsonlSink(self.run_dir / METRICS, done)
        return Sinks([metrics, self.status, console, WatchSink(self.keeper, console.say), trackers])


def gathered(frozen: Sequence[str], module: nn.Module) -> list[str]:
    """Names of parameters; of a part of which all are among them, one name with a star and their number."""
    rest = {name for name, _ in module.named_parameters()} - set(frozen)
    found: dict[str, list[str]] = {}
    for name in frozen:
        words = name.split(".")
        starts = [".".join(words[:n]) + "." for n in range(1, len(words))]
        idle = next((start for start in starts if not any(other.startswith(start) for other in rest)), name)
        found.setdefault(idle, []).append(name)
    return [names[0] if len(names) == 1 else f"{start}* ({len(names)} parameters)" for start, names in found.items()]


def notes(parts: Parts) -> list[str]:
    """What is to be known before the first line."""
    said = [f"frozen, no loss reaches it: {name}" for name in gathered(parts.frozen, bare(parts.step))]
    if parts.tokenizer is not None and cast("Step", bare(parts.step)).drops_texts():
        said.append("equal texts are encoded once a row: the text tower has dropout")
    return said
