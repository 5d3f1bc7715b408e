"""The course of one stage: what happens around the loop."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from unicl_cli.build import rate, worker_count
from unicl_cli.core import checkpoint
from unicl_cli.core.dist import any_rank, bare, barrier, rank, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.files import write_atomic
from unicl_cli.core.guard import BadSteps
from unicl_cli.core.loop import Plan, Step, fit
from unicl_cli.core.sinks import ConsoleSink, JsonlSink, Sinks, SpikeSink, StatusSink, kept_lines, writing
from unicl_cli.core.stopping import StopFlag
from unicl_cli.core.trackers import TrackerSink
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.jobs.evaluate import validate
from unicl_cli.jobs.stage import Parts, describe, stream, versions
from unicl_cli.load import Loaded, transform_of
from unicl_cli.recipe import as_mapping, recipe_hash


class Stage:
    """What happens around the loop of one stage: checkpoints, validation, status, the finished model."""

    def __init__(self, parts: Parts, run: Path, accelerator: Any, optimizer: Any, average: Average | None) -> None:
        self.parts, self.run_dir, self.accelerator = parts, run, accelerator
        self.optimizer, self.average = optimizer, average
        self.saved_at = time.monotonic()
        self.console: ConsoleSink | None = None
        self.trackers: TrackerSink | None = None

    def run(self, done: int, stop: StopFlag, *, quiet: bool) -> None:
        """From step ``done`` to the end, or to a stop: raises Stopped with the state written."""
        parts, recipe = self.parts, self.parts.recipe
        sinks, status = self.sinks(done, quiet=quiet)
        workers = worker_count(recipe, self.accelerator.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        pin = self.accelerator.device.type == "cuda"
        data = stream(recipe, parts.data, parts.tokenizer, parts.step, done, parts.steps, workers, pin=pin)
        plan = Plan(
            steps=parts.steps,
            seed=recipe.seed,
            lr=rate(recipe, parts.steps),
            grad_clip=recipe.optim.clip_norm,
            log_every=recipe.log.every,
            guard=BadSteps(recipe.guard.max_bad_steps),
            describe=partial(describe, pad_id=getattr(parts.tokenizer, "pad_id", None)),
        )
        if status is not None:
            status.state("running", step=done)
        try:
            self.catch_up(done)
            done = fit(parts.step, data, self.optimizer, plan, self.accelerator, sinks, after=self.after, stopping=stop)
        except Exception:
            if status is not None:
                with contextlib.suppress(UniclError):  # a full disk has been the reason
                    status.state("failed")
            raise
        finally:
            sinks.close()
        if done < parts.steps:
            self.save(done)
            if status is not None:
                status.state("stopped", step=done, signal=stop.signal)
            raise Stopped(f"stopped after step {done} of {parts.steps}", "the same command goes on from there")
        self.finish(status)

    def sinks(self, done: int, *, quiet: bool) -> tuple[Sinks, StatusSink | None]:
        """Rank 0 writes; the others log nowhere."""
        if rank() != 0:
            return Sinks([]), None
        if not done:  # what a run that never came to a checkpoint left
            (self.run_dir / "eval.jsonl").unlink(missing_ok=True)
        status = StatusSink(self.run_dir / "status.json", self.parts.steps, world_size())
        self.console = ConsoleSink(self.parts.steps, done, quiet=quiet)
        for name in self.parts.frozen:
            self.console.say(f"frozen, no loss reaches it: {name}")
        if self.parts.tokenizer is not None and cast("Step", bare(self.parts.step)).drops_texts():
            self.console.say("equal texts are encoded once a row: the text tower has dropout")
        recipe = self.parts.recipe
        self.trackers = TrackerSink(recipe.log.trackers, self.run_dir, recipe.log.project, as_mapping(recipe), done)
        spikes = [SpikeSink(self.console.say)] if recipe.guard.on_spike == "warn" else []
        metrics = JsonlSink(self.run_dir / "metrics.jsonl", done)
        return Sinks([metrics, status, self.console, *spikes, self.trackers]), status

    def after(self, step: int) -> None:
        """Called by the loop with the number of completed steps, on every rank."""
        if self.average is not None:
            self.average.update()
        recipe = self.parts.recipe
        last = step == self.parts.steps
        if step % recipe.checkpoint.every == 0 or last or self.overdue():
            self.save(step)
        due = [item for item in recipe.eval if step % item.every == 0 or last]
        for item in due:
            self.validate(step, item)
        if due:
            self.keep_best(step)

    def catch_up(self, done: int) -> None:
        """The validations of step ``done`` that a cut after its checkpoint left out."""
        for item in self.parts.recipe.eval if done else ():
            due = done % item.every == 0 or done == self.parts.steps
            if due and any_rank(rank() == 0 and not self.noted(done, item)):
                self.validate(done, item)
        self.keep_best(done)

    def keep_best(self, step: int) -> None:
        """A checkpoint of ``step`` under the name ``best``, if no validation so far was better."""
        wanted = self.parts.recipe.checkpoint.best
        if wanted is None or not any_rank(rank() == 0 and self.is_best(step, wanted.metric, wanted.mode)):
            return
        self.save(step)
        if rank() == 0:
            write_atomic(self.run_dir / "checkpoints" / "best", f"step-{step:08d}")

    def is_best(self, step: int, metric: str, mode: str) -> bool:
        """Has the first of ``eval`` been measured at ``step``, and never with a better figure?"""
        first = self.parts.recipe.eval[0]
        own = [row for row in self.measured() if row["corpus"] == first.corpus and first.split in (None, row["split"])]
        figures = {row["step"]: row[metric] for row in own if metric in row}
        return step in figures and figures[step] == (max if mode == "max" else min)(figures.values())

    def measured(self) -> list[dict[str, Any]]:
        """The sound lines of ``eval.jsonl``."""
        path = self.run_dir / "eval.jsonl"
        return [json.loads(line) for line in kept_lines(path)] if path.is_file() else []

    def noted(self, step: int, item: Any) -> bool:
        """Does ``eval.jsonl`` have a line of this validation?"""
        rows = self.measured()
        return any((r["step"], r["corpus"]) == (step, item.corpus) and item.split in (None, r["split"]) for r in rows)

    def overdue(self) -> bool:
        """Is the last checkpoint older than ``checkpoint.minutes``? Rank 0's clock counts."""
        minutes = self.parts.recipe.checkpoint.minutes
        if minutes is None:
            return False
        return any_rank(rank() == 0 and time.monotonic() - self.saved_at > 60 * minutes)

    def save(self, step: int) -> None:
        """A checkpoint; the same step twice costs nothing."""
        recipe = self.parts.recipe
        facts = {
            "step": step,
            "steps": self.parts.steps,
            "seed": recipe.seed,
            "batch_size": recipe.batch.size,
            "micro": self.parts.micro,
            "world": world_size(),
            "threads": torch.get_num_threads(),
            "recipe": recipe_hash(recipe),
            "rows": len(self.parts.data.mix),
            "corpora": self.parts.data.checksums,
            "versions": versions(),
        }
        average = None if self.average is None else self.average.values
        root = self.run_dir / "checkpoints"
        keep = recipe.checkpoint
        checkpoint.save(root, self.parts.step, self.optimizer, facts, keep.keep, average, keep.keep_every)
        self.saved_at = time.monotonic()

    def validate(self, step: int, item: Any) -> None:
        """Zero-shot on one of ``eval[]``, on every rank; a line of ``eval.jsonl``."""
        parts = self.parts
        corpus = open_corpus(item.corpus)
        split = item.split or next((s for s in ("test", "val") if s in corpus.splits), None)
        if split is None:
            raise UniclError(f"eval: {item.corpus} has neither a test nor a val split", "set eval.0.split")
        transform = transform_of(bare(parts.step), parts.recipe.data.image_size)
        templates, module = parts.data.templates, cast("Step", parts.step)
        loaded = Loaded(str(self.run_dir), module, parts.tokenizer, transform, parts.data.classes, templates, ())
        with self.accelerator.autocast():
            figures = validate(loaded, corpus, split, batch=item.batch, limit=item.limit)
        if rank() == 0:
            self.note(step, {"corpus": item.corpus, "split": split, **figures})

    def note(self, step: int, figures: Mapping[str, Any]) -> None:
        """Appends to ``eval.jsonl`` and says it; an evaluation that is repeated after a cut replaces its line."""
        path = self.run_dir / "eval.jsonl"
        key = (step, figures["corpus"], figures["split"])
        kept = [row for row in self.measured() if (row["step"], row["corpus"], row["split"]) != key]
        rows = [row for row in kept if row["step"] <= step] + [{"step": step, **figures}]
        with writing(path):
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        if self.trackers is not None:
            name = f"eval/{figures['corpus']}/{figures['split']}"
            self.trackers.log(step, {f"{name}/{k}": v for k, v in figures.items() if isinstance(v, float)})
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
        if self.console is not None:
            self.console.say(f"step {step} {figures['corpus']} {figures['split']}: {shown}")

    def finish(self, status: StatusSink | None) -> None:
        """The finished model at the top of the run; ``meta.json`` is written last and says that it is whole."""
        weights = checkpoint.weights(self.parts.step)
        average = None if self.average is None else self.average.values
        if rank() == 0:
            checkpoint.write_tensors(self.run_dir / checkpoint.MODEL, weights)
            if average is not None:
                checkpoint.write_tensors(self.run_dir / checkpoint.EMA, average)
            parameters = sum(p.numel() for p in self.parts.step.parameters())
            facts = {"schema": "unicl/model/1", "step": self.parts.steps, "parameters": parameters, **versions()}
            write_atomic(self.run_dir / "meta.json", json.dumps(facts, indent=1))
        if status is not None:
            status.state("done", step=self.parts.steps)
        barrier()
