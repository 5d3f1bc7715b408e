"""What a run keeps: checkpoints with all that the next start has to know, validations, the finished model."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from unicl_cli.build.load import Loaded, plain_weights, transform_of
from unicl_cli.build.lora import in_names
from unicl_cli.contracts import Batch
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.dist import any_rank, bare, barrier, largest_over_ranks, rank, sum_over_ranks, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.files import write_atomic
from unicl_cli.core.guard import HINT, Diverged, Guard
from unicl_cli.core.loop import Step
from unicl_cli.core.saver import Saver
from unicl_cli.core.sinks import explain_write_errors, read_whole_lines
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.jobs.evaluate import validate
from unicl_cli.jobs.train.setup import Parts, load_state, versions
from unicl_cli.recipe.text import recipe_hash
from unicl_cli.runs.folder import CHECKPOINTS, CRASH, META, VALIDATIONS


class Rollback(Exception):  # noqa: N818 - no error: the loop is left, and begins again from an earlier step
    """After step ``step`` all ranks have heard of a spike; step ``target`` has a checkpoint from before it."""

    def __init__(self, step: int, target: int) -> None:
        super().__init__(step, target)
        self.step, self.target = step, target


class Keeper:
    """Saves, validates and notes; every rank has one, and rank 0's writes."""

    def __init__(
        self, parts: Parts, run: Path, accelerator: Any, optimizer: Any, average: Average | None, guard: Guard
    ) -> None:
        self.parts, self.run_dir, self.accelerator, self.guard = parts, run, accelerator, guard
        self.optimizer, self.average = optimizer, average
        self.saved_at = time.monotonic()
        self.say: Callable[[str], None] = lambda message: None
        self.track: Callable[[int, Mapping[str, float]], None] = lambda step, values: None
        self.offset = 0
        """Steps of the order of samples that a rollback has skipped: step n takes the batch n + offset."""
        self.best: dict[str, Any] | None = None
        self.tokens = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self.tokens_before = 0
        self.calm_step: int | None = None
        """Set on rank 0 when a spike is to be answered: the last step before it."""
        keep = parts.recipe.checkpoint
        self.saver = Saver(
            run / CHECKPOINTS,
            keep=keep.keep,
            keep_every=keep.keep_every,
            asynchronous=keep.asynchronous,
            step=None,
            say=lambda message: self.say(message),
        )

    # -- while the loop runs --------------------------------------------------------------------------------------

    def each(self, step: int, batch: Batch) -> None:
        """After every step, without waiting for the device; the average moves after an update left out too."""
        if self.average is not None:
            self.average.update(step)
        pad_id = getattr(self.parts.tokenizer, "pad_id", None)
        if pad_id is not None:
            self.tokens += (batch.tokens != pad_id).sum()

    def due(self, step: int) -> bool:
        """Has `after` work once ``step`` steps are completed?"""
        return self.saves_at(step) or any(self.measures_at(step, item) for item in self.parts.recipe.eval)

    def saves_at(self, step: int) -> bool:
        return step % self.parts.recipe.checkpoint.every == 0 or step == self.parts.steps

    def measures_at(self, step: int, item: Any) -> bool:
        return step % item.every == 0 or step == self.parts.steps

    def wanted(self) -> bool:
        """Rank 0: is `after` to be called though no step's number says so?"""
        if rank() != 0:
            return False
        minutes = self.parts.recipe.checkpoint.minutes
        overdue = minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        return overdue or self.saver.failed() or self.calm_step is not None

    def after(self, step: int) -> None:
        """Called by the loop with the number of completed steps, on every rank: where it is due, or one wants it."""
        if self.parts.recipe.guard.on_spike == "rollback":
            self.answer_spike(step)
        due = [item for item in self.parts.recipe.eval if self.measures_at(step, item)]
        if self.saves_at(step) or not due:
            self.save(step)
        for item in due:
            self.validate(step, item)
        if due:
            self.keep_best(step)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """A checkpoint; the same step twice costs nothing."""
        if self.saver.step != step:
            average = None if self.average is None else self.average.values
            self.saver.save(self.parts.step, self.optimizer, self.facts(step), average)
        self.saved_at = time.monotonic()

    def facts(self, step: int) -> dict[str, Any]:
        """``trainer.json``: what cannot be derived from the recipe and the step, and what to compare with."""
        recipe, scaler = self.parts.recipe, self.accelerator.scaler
        return {
            "step": step,
            "steps": self.parts.steps,
            "seed": recipe.seed,
            "batch_size": recipe.batch.size,
            "micro": self.parts.micro,
            "samples": step * recipe.batch.size,
            "tokens": self.tokens_before + int(sum_over_ranks(self.tokens)),
            "offset": self.offset,
            "best": self.best,
            "guard": self.guard.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "world": world_size(),
            "threads": torch.get_num_threads(),
            "recipe": recipe_hash(recipe),
            "rows": len(self.parts.data.mix),
            "corpora": self.parts.data.checksums,
            "versions": versions(),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """What `facts` said when they were written."""
        missing = {"offset", "best", "tokens", "guard", "scaler"} - facts.keys()
        if missing:
            message = f"the checkpoint of step {facts['step']} was written by an earlier unicl: no {sorted(missing)[0]}"
            raise UniclError(message, "start a new run with --run-dir")
        self.offset, self.best = int(facts["offset"]), facts["best"]
        self.tokens_before = int(facts["tokens"])
        self.tokens.zero_()
        self.guard.load(facts["guard"])
        if facts["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        step = int(facts["step"])
        self.saver.step = step if checkpoint_files.folder_of(self.run_dir / CHECKPOINTS, step).is_dir() else None

    def answer_spike(self, step: int) -> None:
        """Raises Rollback if rank 0 has met one and there is a checkpoint from before it; Diverged after too many."""
        calm = largest_over_ranks(0 if self.calm_step is None else self.calm_step + 1) - 1
        self.calm_step = None
        if calm < 0:
            return
        self.saver.join()
        folders = checkpoint_files.list_folders(self.run_dir / CHECKPOINTS) if rank() == 0 else ()
        steps = [checkpoint_files.step_of(folder) for folder in folders if checkpoint_files.is_whole(folder)]
        target = largest_over_ranks(max((n for n in steps if n <= calm), default=0))
        if not target:
            self.say(f"warning: no checkpoint is from before step {calm}: the run goes on")
            return
        limit = self.parts.recipe.guard.max_rollbacks
        if self.guard.rollbacks >= limit:
            message = f"after step {calm} the loss or its gradient rose far above its usual values once more"
            evidence = {"guard": self.guard.state(), "offset": self.offset}
            raise Diverged(f"{message}, after {limit} rollbacks", HINT, step, evidence)
        raise Rollback(step, target)

    def go_back(self, spike: Rollback) -> int:
        """To the checkpoint from before a spike; the steps after it take other samples than the ones since then.

        Its trainer.json keeps the old offset: a run that is cut here meets the same spike again, and goes back again.
        """
        folder = checkpoint_files.folder_of(self.run_dir / CHECKPOINTS, spike.target)
        skipped, count = spike.step - spike.target, self.guard.rollbacks + 1
        offset = self.offset + skipped
        self.saver.back_to(folder)
        load_state(folder, self.parts.step, self.optimizer, self.average)
        self.restore(checkpoint_files.read_facts(folder))
        self.offset, self.guard.rollbacks = offset, count
        if rank() == 0 and (self.run_dir / VALIDATIONS).is_file():
            self.rewrite([row for row in self.measured() if row["step"] <= spike.target])
        limit = self.parts.recipe.guard.max_rollbacks
        self.say(f"back to step {spike.target}, without the samples of {skipped} steps (rollback {count} of {limit})")
        return spike.target

    # -- validations ----------------------------------------------------------------------------------------------

    def catch_up(self, done: int) -> None:
        """The validations of step ``done`` that a cut after its checkpoint left out."""
        for item in self.parts.recipe.eval if done else ():
            if self.measures_at(done, item) and any_rank(rank() == 0 and not self.noted(done, item)):
                self.validate(done, item)
        self.keep_best(done)

    def keep_best(self, step: int) -> None:
        """A checkpoint of ``step`` under the name ``best``, if no validation so far was better."""
        wanted = self.parts.recipe.checkpoint.best
        if wanted is None or not any_rank(rank() == 0 and self.is_best(step, wanted.metric, wanted.mode)):
            return
        self.save(step)
        if rank() == 0:
            self.saver.point(checkpoint_files.BEST)

    def is_best(self, step: int, metric: str, mode: str) -> bool:
        """Has the first of ``eval`` been measured at ``step``, and never with a better figure?"""
        first = self.parts.recipe.eval[0]
        own = [row for row in self.measured() if row["corpus"] == first.corpus and first.split in (None, row["split"])]
        figures = {row["step"]: row[metric] for row in own if metric in row}
        if self.best is not None:
            figures.setdefault(self.best["step"], self.best["value"])
        best = step in figures and figures[step] == (max if mode == "max" else min)(figures.values())
        if best:
            self.best = {"step": step, "metric": metric, "value": figures[step]}
        return best

    def measured(self) -> list[dict[str, Any]]:
        """The sound lines of ``eval.jsonl``."""
        path = self.run_dir / VALIDATIONS
        return [json.loads(line) for line in read_whole_lines(path)] if path.is_file() else []

    def noted(self, step: int, item: Any) -> bool:
        """Does ``eval.jsonl`` have a line of this validation?"""
        rows = self.measured()
        return any((r["step"], r["corpus"]) == (step, item.corpus) and item.split in (None, r["split"]) for r in rows)

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
        key = (step, figures["corpus"], figures["split"])
        kept = [row for row in self.measured() if (row["step"], row["corpus"], row["split"]) != key]
        self.rewrite([row for row in kept if row["step"] <= step] + [{"step": step, **figures}])
        name = f"eval/{figures['corpus']}/{figures['split']}"
        self.track(step, {f"{name}/{k}": v for k, v in figures.items() if isinstance(v, float)})
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
        self.say(f"step {step} {figures['corpus']} {figures['split']}: {shown}")

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """``eval.jsonl`` anew."""
        path = self.run_dir / VALIDATIONS
        with explain_write_errors(path):
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))

    # -- the end --------------------------------------------------------------------------------------------------

    def record(self, trouble: Diverged) -> None:
        """``crash/step-N/evidence.json``: what the run that ends here leaves to look into."""
        path = self.run_dir / CRASH / f"step-{trouble.step}" / "evidence.json"
        facts = {"message": trouble.message, "step": trouble.step, **trouble.evidence}
        with explain_write_errors(path):
            write_atomic(path, json.dumps(facts, indent=1))

    def end(self, done: int) -> None:
        """The finished model, or a checkpoint to go on from; nothing is left to be written."""
        if done < self.parts.steps:
            self.save(done)
            self.saver.join()
        else:
            self.finish()

    def finish(self) -> None:
        """The finished model at the top of the run; ``meta.json`` is written last and says that it is whole."""
        self.saver.join()
        parts, average = self.parts, None if self.average is None else self.average.values
        files = checkpoint.state_of(parts.step, None, average, copy=False)
        checkpoint.wait_for_copies(files)
        if rank() == 0:
            for name, tensors in files.items():
                plain = plain_weights(parts.recipe, self.run_dir, parts.data, parts.tokenizer, tensors)
                checkpoint.write_tensors(self.run_dir / name, plain)
            parameters = sum(p.numel() for name, p in parts.step.named_parameters() if not in_names([name]))
            facts = {"schema": "unicl/model/1", "step": self.parts.steps, "parameters": parameters, **versions()}
            write_atomic(self.run_dir / META, json.dumps(facts, indent=1))
        barrier()
