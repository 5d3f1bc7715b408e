"""One training stage: the loop with its logging, divergence guards, checkpoints and validations."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unicl_cli.build.optimizer import learning_rate
from unicl_cli.build.workers import worker_count
from unicl_cli.contracts import NO_KEY, NO_LABEL, Batch
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET
from unicl_cli.core.dist import any_rank, bare, gather, rank, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.guard import Diverged
from unicl_cli.core.loop import Plan, Step, fit
from unicl_cli.core.sinks import ConsoleSink, JsonlSink, Sinks, StatusSink
from unicl_cli.core.trackers import TrackerSink
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.jobs.train.checkpoints import Checkpoints, Rollback
from unicl_cli.jobs.train.setup import Parts
from unicl_cli.jobs.train.validations import Validations, resolve_entries
from unicl_cli.jobs.train.watch import WatchSink, build_guard
from unicl_cli.launch.stopping import StopFlag
from unicl_cli.recipe.text import as_mapping
from unicl_cli.runs.folder import METRICS, STATUS, VALIDATIONS
from unicl_cli.yaml_lines import leaves


class Stage:
    """One stage of a training, on every rank."""

    def __init__(self, parts: Parts, run: Path, accelerator: Any, optimizer: Any, average: Average | None) -> None:
        self.parts, self.run_dir, self.accelerator, self.optimizer = parts, run, accelerator, optimizer
        self.checkpoints = Checkpoints(parts, run, accelerator, optimizer, average, build_guard(parts))
        self.validations = Validations(parts, resolve_entries(parts.recipe), run, accelerator, average)
        self.status: StatusSink | None = None

    def run(self, facts: Mapping[str, Any] | None, stop: StopFlag, *, quiet: bool) -> None:
        """Train from a checkpoint's ``facts`` (None: from step 0) to the end; after a stop, save and raise Stopped."""
        done, steps = 0 if facts is None else int(facts["step"]), self.parts.sizes.steps
        if rank() == 0:
            self.status = StatusSink(self.run_dir / STATUS, steps, world_size())
        try:
            if facts is not None:
                self.checkpoints.restore(facts)
            done = self.train_from(done, stop, quiet=quiet)
            self.checkpoints.finish(done)
        except Exception as error:
            self.write_failure(error)
            raise
        finally:
            self.checkpoints.close()
        if done < steps:
            self.set_status("stopped", step=done, signal=stop.signal)
            raise Stopped(f"stopped after step {done:,} of {steps:,}", "run the same command again to continue")
        self.set_status("done", step=done)

    def train_from(self, done: int, stop: StopFlag, *, quiet: bool) -> int:
        """Run the loop from step ``done`` on, again after each rollback; return the completed steps."""
        notes = opening_notes(self.parts)
        while True:
            sinks = self.open_sinks(done, notes, quiet=quiet)
            try:
                self.set_status("running", step=done)
                self.validations.catch_up(done)
                self.keep_best(done)
                step, batches, plan = self.parts.step, self.batches(done), self.plan()
                return fit(
                    step, batches, self.optimizer, plan, self.accelerator, sinks, after=self.after, stopping=stop
                )
            except Rollback as spike:
                self.checkpoints.go_back(spike)
                self.validations.drop_after(spike.target)
                done, notes = spike.target, []
            finally:
                sinks.close()

    def plan(self) -> Plan:
        """Return the numbers of the loop, and what it calls."""
        recipe, steps = self.parts.recipe, self.parts.sizes.steps
        return Plan(
            steps=steps,
            seed=recipe.seed,
            lr=learning_rate(recipe, steps),
            grad_clip=recipe.optim.clip_norm,
            log_every=recipe.log.every,
            describe=partial(batch_figures, pad_id=getattr(self.parts.tokenizer, "pad_id", None)),
            each=self.checkpoints.follow,
            due=self.is_due,
            save=self.checkpoints.is_urgent,
            guard=self.checkpoints.guard.bad,
        )

    def batches(self, done: int) -> Iterator[tuple[int, Batch]]:
        """Return the batches from step ``done`` on, without the samples that rollbacks have skipped."""
        parts, offset = self.parts, self.checkpoints.offset
        workers = worker_count(parts.recipe, self.accelerator.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return stream_batches(
            parts.recipe, parts.data, parts.tokenizer, parts.step, done, parts.sizes.steps, workers, offset=offset
        )

    def is_due(self, step: int) -> bool:
        """Return True if `after` has work once ``step`` steps are completed."""
        return self.checkpoints.is_due(step) or bool(self.validations.due(step))

    def after(self, step: int) -> None:
        """Save and validate once ``step`` steps are completed, where it is due or a rank asks; on every rank."""
        if self.parts.recipe.guard.on_spike == "rollback":
            self.checkpoints.answer_spike(step)
        if step == self.parts.sizes.steps:
            self.checkpoints.check_end()
        due = self.validations.due(step)
        if self.checkpoints.is_due(step) or not due:
            self.checkpoints.save(step)
        for entry in due:
            self.validations.measure(step, entry)
        if due:
            self.keep_best(step)

    def keep_best(self, step: int) -> None:
        """Save a checkpoint of ``step`` under the name ``best``, if no validation so far was better."""
        best = self.validations.best_at(step, self.checkpoints.best)
        if self.parts.recipe.checkpoint.best is not None and any_rank(best is not None):
            self.checkpoints.save_best(step, best)

    # -- what is written ------------------------------------------------------------------------------------------

    def open_sinks(self, done: int, notes: Sequence[str], *, quiet: bool) -> Sinks:
        """Open rank 0's sinks and say the ``notes``; the other ranks log nowhere."""
        if self.status is None:
            return Sinks([])
        if not done:  # a run that was stopped before its first checkpoint may have left some
            (self.run_dir / VALIDATIONS).unlink(missing_ok=True)
        recipe, console = self.parts.recipe, ConsoleSink(self.parts.sizes.steps, done, quiet=quiet)
        for note in notes:
            console.say(note)
        trackers = TrackerSink(recipe.log.trackers, self.run_dir, recipe.log.project, leaves(as_mapping(recipe)), done)
        self.checkpoints.say = self.validations.say = console.say
        self.validations.track = trackers.log
        metrics = JsonlSink(self.run_dir / METRICS, done)
        return Sinks([metrics, self.status, console, WatchSink(self.checkpoints, console.say), trackers])

    def set_status(self, state: str, **facts: Any) -> None:
        """Write rank 0's `status.json`."""
        if self.status is not None:
            self.status.set_state(state, **facts)

    def write_failure(self, error: Exception) -> None:
        """Write what can still be written when a run fails; a full disk may have been the reason."""
        with contextlib.suppress(UniclError):
            if rank() == 0 and isinstance(error, Diverged):
                self.checkpoints.write_evidence(error)
            self.set_status("failed")


def batch_figures(batch: Batch, pad_id: int | None) -> dict[str, Tensor]:
    """Return a batch's metrics: rows with labels, positives per row, distinct texts per row, padding among the tokens.

    The positives are those of the global batch, the row itself included; for label sets, keys do not give them.
    """
    if KNOWN in batch.extra:
        named = (batch.extra[LABEL_SET] != NO_LABEL).any(1)  # by a caption, which annotates no group
        facts = {"label_share": (named | (batch.extra[KNOWN] != 0)).float().mean()}
    else:
        facts = {"label_share": (batch.labels != NO_LABEL).float().mean(), **count_positives(batch.keys)}
    if pad_id is None:
        return facts
    distinct = torch.tensor(len(batch.tokens) / len(batch.labels))
    return {**facts, "unique_text": distinct, "padding": (batch.tokens == pad_id).float().mean()}


def count_positives(keys: Tensor) -> dict[str, Tensor]:
    """Return the mean number of rows of the global batch with a row's key, and the share of rows with one."""
    ordered = gather(keys).sort().values
    # how often each row's key is there; torch.unique would make the host wait
    counts = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)
    valid = ordered != NO_KEY
    rows = valid.sum().clamp(min=1)
    return {"positives": (counts * valid).sum() / rows, "single_positive": ((counts == 1) & valid).sum() / rows}


def opening_notes(parts: Parts) -> list[str]:
    """Return the notes that precede the first line: frozen parameters, texts that are encoded again and again."""
    notes = [f"frozen, no loss reaches it: {name}" for name in grouped_names(parts.frozen, bare(parts.step))]
    if parts.tokenizer is not None and cast("Step", bare(parts.step)).drops_texts():
        notes.append("equal texts are encoded once per row: the text tower has dropout")
    return notes


def grouped_names(frozen: Sequence[str], module: nn.Module) -> list[str]:
    """Return the names of parameters; a part of which all are among them is one name with a star and their number."""
    rest = {name for name, _ in module.named_parameters()} - set(frozen)
    found: dict[str, list[str]] = {}
    for name in frozen:
        words = name.split(".")
        starts = [".".join(words[:n]) + "." for n in range(1, len(words))]
        idle = next((start for start in starts if not any(other.startswith(start) for other in rest)), name)
        found.setdefault(idle, []).append(name)
    return [names[0] if len(names) == 1 else f"{start}* ({len(names)} parameters)" for start, names in found.items()]
