"""One stage of a training: what is built before the loop, and what happens around it."""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from unicl_cli import __version__
from unicl_cli.build import (
    Data,
    build_data,
    build_step,
    build_tokenizer,
    check_learnable,
    doubts,
    rate,
    store_towers,
    total_steps,
    worker_count,
)
from unicl_cli.contracts import NO_LABEL, Batch, Tokenizer
from unicl_cli.core import checkpoint
from unicl_cli.core.dist import any_rank, bare, barrier, rank, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.files import write_atomic
from unicl_cli.core.launch import StopFlag
from unicl_cli.core.loop import Plan, Step, fit, freeze_idle
from unicl_cli.core.sinks import ConsoleSink, JsonlSink, Sinks, SpikeSink, StatusSink, kept_lines, writing
from unicl_cli.core.trackers import TrackerSink
from unicl_cli.data.collate import Extra
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.loader import Draws, batches
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.jobs.evaluate import validate
from unicl_cli.load import Loaded, transform_of
from unicl_cli.recipe import Recipe, as_mapping, check_shares, dump, recipe_hash

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "tokenizers", "numpy", "pyarrow", "pillow")


class Parts(NamedTuple):
    """All that a training consists of, on this rank."""

    recipe: Recipe
    data: Data
    step: nn.Module
    tokenizer: Tokenizer | None
    steps: int
    frozen: list[str]


def describe(batch: Batch, pad_id: int | None) -> dict[str, torch.Tensor]:
    """What a console line says of a batch: rows with a label, distinct texts a row, padding among the tokens."""
    labelled = {"label_share": (batch.labels != NO_LABEL).float().mean()}
    if pad_id is None:
        return labelled
    distinct = torch.tensor(len(batch.tokens) / len(batch.labels))
    return {**labelled, "unique_text": distinct, "padding": (batch.tokens == pad_id).float().mean()}


def versions() -> dict[str, str]:
    """Of everything that can change a number."""
    return {"unicl": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def platform_facts() -> dict[str, Any]:
    """For ``env.json``."""
    return {"versions": versions(), "platform": platform.platform(), "threads": torch.get_num_threads()}


def prepared(recipe: Recipe, accelerator: Any, run: Path) -> Parts:
    """Corpora, tokenizer, model and loss of a stage, with what no loss reaches frozen."""
    check_shares(recipe, world_size())
    data = build_data(recipe)
    check_learnable(recipe, data)
    for doubt in doubts(recipe, data) if rank() == 0 else ():
        sys.stderr.write(f"warning: {doubt}\n")
    fitted: list[TextTokenizer] = []

    def tokenizer() -> TextTokenizer:
        if not fitted:
            fitted.append(build_tokenizer(recipe, data))
        return fitted[0]

    micro = recipe.batch.micro
    local = recipe.batch.size // world_size()
    chunks = 1 if micro == "auto" else -(-local // micro)
    cut = checkpoint.newest(run / "checkpoints")  # its weights are going to be loaded
    if cut is not None:
        check_unchanged(data, cut)  # before anything of the run is written again
    step, own = build_step(recipe, tokenizer, data.classes, chunks, trained=run if cut else None)
    check_batchnorm(step, chunks)
    if rank() == 0:
        names = [{"key": c.key, "names": list(c.names)} for c in data.classes]
        length = own.context_length if own is not None else 0
        facts = {"classes": names, "templates": list(data.templates), "context_length": length}
        write_atomic(run / "classes.json", json.dumps(facts, indent=1, ensure_ascii=False))
        write_atomic(run / "resolved.yaml", dump(recipe))
        if isinstance(own, TextTokenizer):
            own.save(run / "tokenizer.json")
        if cut is None:
            store_towers(step, run)
    step.to(accelerator.device).train()
    steps = total_steps(recipe, data)
    first = next(stream(recipe, data, own, step, 0, 1, 0, pin=False))[1]
    frozen = freeze_idle(step, first, accelerator)
    return Parts(recipe, data, step, own, steps, frozen)


def check_unchanged(data: Data, folder: Path) -> None:
    """A run goes on only with the corpora it began with: tokenizer, classes and order came from them."""
    known = checkpoint.read_facts(folder)["corpora"].items()
    changed = [name for name, old in known if data.checksums.get(name, old) != old]
    if changed:
        raise UniclError(
            f"{', '.join(changed)}: the corpus has changed since {folder} was written",
            "put the old corpus back, or start a new run with --run-dir",
        )


def check_batchnorm(step: nn.Module, chunks: int) -> None:
    """Statistics of a part of a batch, or of one process's share, are not the batch's."""
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in step.modules()):  # pyright: ignore[reportPrivateUsage]
        return
    if chunks > 1:
        raise UniclError(
            "batch.micro would give BatchNorm other statistics than the whole batch",
            "set batch.micro=auto, or take a backbone without BatchNorm",
        )
    if world_size() > 1 and not torch.cuda.is_available() and rank() == 0:
        sys.stderr.write("warning: BatchNorm sees each process's share alone on the CPU; results depend on --devices\n")


def stream(
    recipe: Recipe,
    data: Data,
    tokenizer: Tokenizer | None,
    step: nn.Module,
    start: int,
    steps: int,
    workers: int,
    *,
    pin: bool,
) -> Any:
    """(step, Batch) of this rank from ``start`` on."""
    draws = Draws(data.order, start, steps, rank(), world_size())
    inner = cast("Step", bare(step))
    hooks: list[Any] = [part.extra for part in (inner.model, inner.loss) if hasattr(part, "extra")]
    return batches(
        data.mix,
        draws,
        cast("TextTokenizer | None", tokenizer),
        caption_targets=recipe.data.caption_targets,
        extra=Extra(hooks),
        distinct=not inner.drops_texts(),
        workers=workers,
        pin_memory=pin,
    )


def resume(wanted: str, run: Path, parts: Parts, step: nn.Module, optimizer: Any, average: Average | None) -> int:
    """Completed steps: 0, or those of the checkpoint that was loaded."""
    home = run / "checkpoints"
    own = checkpoint.newest(home)
    folder = own if wanted == "auto" else None if wanted == "never" else Path(wanted)
    if own is not None and (folder is None or folder.resolve().parent != home.resolve()):
        raise UniclError(f"{run}: holds checkpoints", "give another --run-dir, or --resume auto to continue them")
    if folder is None:
        return 0
    if not checkpoint.is_whole(folder):
        raise UniclError(
            f"--resume {wanted}: is no whole checkpoint", "give a directory like RUN/checkpoints/step-00000100"
        )
    facts = checkpoint.read_facts(folder)
    check_unchanged(parts.data, folder)
    checkpoint.load_weights(bare(step), checkpoint.read_tensors(folder / checkpoint.MODEL), str(folder))
    checkpoint.load_optimizer(step, optimizer, folder / checkpoint.OPTIM)
    if average is not None:
        average.load(checkpoint.read_tensors(folder / checkpoint.EMA))
    torch.set_num_threads(facts["threads"])  # another number sums in another order
    if rank() == 0:
        sys.stderr.write(f"{run}: continues after step {facts['step']} of {parts.steps}\n")
    return int(facts["step"])


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
            max_bad_steps=recipe.guard.max_bad_steps,
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
            "micro": recipe.batch.micro,
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
