"""The checkpoints of a run, the way back to an earlier one after a spike, and the finished model."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from unicl_cli.build.load import plain_weights
from unicl_cli.build.lora import has_adapters
from unicl_cli.contracts import Batch
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.dist import any_rank, barrier, largest_over_ranks, rank, sum_over_ranks, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.guard import HINT, Diverged, DivergenceGuard
from unicl_cli.core.loop import has_finite_loss
from unicl_cli.core.saver import Saver
from unicl_cli.core.sinks import explain_write_errors
from unicl_cli.formats import list_first
from unicl_cli.jobs.train.facts import read_training_facts
from unicl_cli.jobs.train.setup import Parts, load_state, versions
from unicl_cli.recipe.text import recipe_hash
from unicl_cli.runs.folder import CHECKPOINTS, CRASH, META, MODEL_SCHEMA
from unicl_cli.storage.files import write_atomic


class Rollback(Exception):  # noqa: N818 - not an error: the loop is left, and begins again from an earlier step
    """The order of all ranks to go back after step ``step`` to the checkpoint of step ``target``, before a spike."""

    def __init__(self, step: int, target: int) -> None:
        super().__init__(step, target)
        self.step, self.target = step, target


class Checkpoints:
    """All of a run's state that a checkpoint holds. Every rank has one; rank 0's writes."""

    def __init__(
        self, parts: Parts, run: Path, accelerator: Any, optimizer: Any, average: Average | None, guard: DivergenceGuard
    ) -> None:
        self.parts, self.run_dir, self.accelerator, self.guard = parts, run, accelerator, guard
        self.optimizer, self.average = optimizer, average
        self.saved_at = time.monotonic()
        self.say: Callable[[str], None] = lambda message: None
        self.offset = 0
        """Steps of the order of samples that rollbacks have skipped: step n takes the batch n + offset."""
        self.best: dict[str, Any] | None = None
        """The best validation so far, as `Validations` found it."""
        self.tokens = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self.tokens_before = 0
        self.last_batch: Batch | None = None
        """That of the last step, until `check_end` has used it."""
        self.calm_step: int | None = None
        """Set on rank 0 after a spike that calls for a rollback: the last logged step before it."""
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

    def follow(self, step: int, batch: Batch) -> None:
        """Update the average and the token count after a step, without waiting for the device.

        The average also moves after an update that was skipped.
        """
        if self.average is not None:
            self.average.update(step)
        pad_id = getattr(self.parts.tokenizer, "pad_id", None)
        if pad_id is not None:
            self.tokens += (batch.tokens != pad_id).sum()
        if step == self.parts.sizes.steps:
            self.last_batch = batch

    def is_due(self, step: int) -> bool:
        """Return True if a checkpoint must be saved once ``step`` steps are completed."""
        return step % self.parts.recipe.checkpoint.every == 0 or step == self.parts.sizes.steps

    def is_urgent(self) -> bool:
        """Return True on rank 0 if a checkpoint is overdue by the clock, a write has failed, or a spike was met."""
        if rank() != 0:
            return False
        minutes = self.parts.recipe.checkpoint.minutes
        overdue = minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        return overdue or self.saver.failed() or self.calm_step is not None

    def save(self, step: int) -> None:
        """Save a checkpoint; the same step twice costs nothing."""
        if self.saver.step != step:
            average = None if self.average is None else self.average.values
            self.saver.save(self.parts.step, self.optimizer, self.facts(step), average)
        self.saved_at = time.monotonic()

    def save_best(self, step: int, best: dict[str, Any] | None) -> None:
        """Save a checkpoint under the name ``best``; rank 0 gives the metric that makes it so."""
        self.best = best
        self.save(step)
        if rank() == 0:
            self.saver.name_newest("best")

    def facts(self, step: int) -> dict[str, Any]:
        """Return ``trainer.json``: the state that recipe and step do not give, and facts to compare runs by."""
        recipe, scaler = self.parts.recipe, self.accelerator.scaler
        return {
            "step": step,
            "steps": self.parts.sizes.steps,
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
        """Restore the state that `facts` described."""
        self.offset, self.best = int(facts["offset"]), facts["best"]
        self.tokens_before = int(facts["tokens"])
        self.tokens.zero_()
        self.guard.load(facts["guard"])
        if facts["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        step = int(facts["step"])
        self.saver.step = step if checkpoint_files.folder_of(self.run_dir / CHECKPOINTS, step).is_dir() else None

    # -- after a spike --------------------------------------------------------------------------------------------

    def answer_spike(self, step: int) -> None:
        """Raise Rollback if rank 0 has met a spike and a checkpoint is from before it; Diverged after too many."""
        calm = largest_over_ranks(0 if self.calm_step is None else self.calm_step + 1) - 1
        self.calm_step = None
        if calm < 0:
            return
        self.saver.join()
        folders = checkpoint_files.list_folders(self.run_dir / CHECKPOINTS) if rank() == 0 else ()
        steps = [checkpoint_files.step_of(folder) for folder in folders if checkpoint_files.is_whole(folder)]
        target = largest_over_ranks(max((n for n in steps if n <= calm), default=0))
        if not target:
            self.say(f"warning: no checkpoint is from before step {calm}: the run continues without a rollback")
            return
        limit = self.parts.recipe.guard.max_rollbacks
        if self.guard.rollbacks >= limit:
            message = f"after step {calm} the loss or its gradient rose far above its usual values once more"
            evidence = {"guard": self.guard.state(), "offset": self.offset}
            raise Diverged(f"{message}, after {limit} rollbacks", HINT, step, evidence)
        raise Rollback(step, target)

    def go_back(self, spike: Rollback) -> None:
        """Load the checkpoint from before a spike; the steps after it skip the samples that were used since then.

        Its trainer.json keeps the old offset: a run that is stopped here meets the same spike again, and goes back
        again.
        """
        folder = checkpoint_files.folder_of(self.run_dir / CHECKPOINTS, spike.target)
        skipped, count = spike.step - spike.target, self.guard.rollbacks + 1
        offset = self.offset + skipped
        self.saver.go_back_to(folder)
        load_state(folder, self.parts.step, self.optimizer, self.average)
        self.restore(read_training_facts(folder))
        self.offset, self.guard.rollbacks = offset, count
        limit = self.parts.recipe.guard.max_rollbacks
        self.say(f"back to step {spike.target}; skipping the samples of {skipped} steps (rollback {count} of {limit})")

    # -- the end --------------------------------------------------------------------------------------------------

    def write_evidence(self, trouble: Diverged) -> None:
        """Write ``crash/step-N/evidence.json``: the facts that explain why the run ends."""
        path = self.run_dir / CRASH / f"step-{trouble.step}" / "evidence.json"
        facts = {"message": trouble.message, "step": trouble.step, **trouble.evidence}
        with explain_write_errors(path):
            write_atomic(path, json.dumps(facts, indent=1))

    def check_end(self) -> None:
        """Raise Diverged if the loss of the finished model is not finite; every rank calls it after the last step.

        The guard allows some bad steps in a row, and a last update shows only in the step after it.
        """
        batch, self.last_batch = self.last_batch, None
        if batch is not None and not has_finite_loss(self.parts.step, batch, self.accelerator):
            self.raise_diverged("the loss of the trained model is not finite on its last batch")

    def raise_diverged(self, message: str) -> NoReturn:
        """End a run whose finished model is of no use."""
        evidence = {"guard": self.guard.state(), "offset": self.offset}
        raise Diverged(message, HINT, self.parts.sizes.steps, evidence)

    def finish(self, done: int) -> None:
        """Write the finished model, or a checkpoint to continue from if steps are left; wait for all writes."""
        if done < self.parts.sizes.steps:
            self.save(done)
            self.saver.join()
        else:
            self.saver.join()
            self.check_end()
            self.write_model()

    def write_model(self) -> None:
        """Write the finished model at the top of the run; ``meta.json`` comes last and says that it is whole."""
        parts, average = self.parts, None if self.average is None else self.average.values
        files = checkpoint.state_of(parts.step, None, average, copy=False)
        checkpoint.wait_for_copies(files)
        broken = [name for tensors in files.values() for name in checkpoint.find_non_finite(tensors)]
        if any_rank(flag=bool(broken)):
            self.raise_diverged(f"the trained weights are not finite: {list_first(broken, 3) or 'see rank 0'}")
        if rank() == 0:
            for name, tensors in files.items():
                plain = plain_weights(parts.recipe, self.run_dir, parts.data, parts.tokenizer, tensors)
                checkpoint.write_tensors(self.run_dir / name, plain)
            parameters = sum(p.numel() for name, p in parts.step.named_parameters() if not has_adapters([name]))
            facts = {"schema": MODEL_SCHEMA, "finished": round(time.time(), 1), "step": parts.sizes.steps}
            facts |= {"parameters": parameters, **versions()}
            write_atomic(self.run_dir / META, json.dumps(facts, indent=1))
        barrier()

    def close(self) -> None:
        """Wait for the thread that writes."""
        self.saver.close()
