"""One stage of a training: all that is built or loaded before the loop."""

import json
import platform
import sys
from collections.abc import Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from unicl_cli import __version__
from unicl_cli.build.data import Data, build_data, build_tokenizer, check_learnable, total_steps
from unicl_cli.build.init import load_init
from unicl_cli.build.lora import MARK, in_names
from unicl_cli.build.model import adapt, build_step, store_towers
from unicl_cli.build.optimizer import doubts
from unicl_cli.build.param_groups import KEY, key_of
from unicl_cli.contracts import Batch, Tokenizer
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.dist import bare, rank, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.files import write_atomic
from unicl_cli.core.loop import Step
from unicl_cli.core.memory import room
from unicl_cli.core.prefetch import ahead, on_device
from unicl_cli.data.collate import Extra
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.micro_batch import chunks_of, first_rows, has_batch_statistics, largest, settled
from unicl_cli.launch.process import is_restarted
from unicl_cli.recipe.load import check_shares
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import dump
from unicl_cli.runs.folder import CHECKPOINTS, CLASSES, RESOLVED, TOKENIZER

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "tokenizers", "numpy", "pyarrow", "pillow")


class Parts(NamedTuple):
    """All that a training consists of, on this rank."""

    recipe: Recipe
    data: Data
    step: nn.Module
    tokenizer: Tokenizer | None
    steps: int
    frozen: list[str]
    micro: int | None
    """Rows encoded at once; None: all."""


def versions() -> dict[str, str]:
    """Of everything that can change a number."""
    return {"unicl": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def platform_facts() -> dict[str, Any]:
    """For ``env.json``."""
    return {"versions": versions(), "platform": platform.platform(), "threads": torch.get_num_threads()}


def prepared(recipe: Recipe, accelerator: Any, run: Path, wanted: str, start: str | None) -> Parts:
    """Corpora, tokenizer, model and loss of a stage, with what no loss reaches frozen.

    ``wanted`` is the checkpoint to go on from: auto, never, or a directory; ``start`` the model to begin with.
    """
    check_shares(recipe, world_size())
    data = build_data(recipe)
    check_learnable(recipe, data)
    for doubt in doubts(recipe, data) if rank() == 0 else ():
        sys.stderr.write(f"warning: {doubt}\n")
    tokenizer = cache(partial(build_tokenizer, recipe, data))
    cut = checkpoint_files.newest(run / CHECKPOINTS)  # its weights are going to be loaded
    if cut is not None:
        check_unchanged(data, cut)  # before anything of the run is written again
    local = recipe.batch.size // world_size()
    said: set[str] = set()

    def make(rows: int) -> tuple[Step, Tokenizer | None]:
        chunks = chunks_of(local, rows)
        step, own = build_step(recipe, tokenizer, data.classes, chunks, trained=run if cut else None)
        said.update(begun(step, recipe, None if cut else start, own))
        check_batchnorm(step.train(), chunks)
        return step, own

    def first(step: Step, own: Tokenizer | None) -> Batch:
        batch = next(stream(recipe, data, own, step, 0, 1, 0))[1]
        return batch if room(accelerator.device) is None else largest(batch, own)

    rows = first_rows(recipe, local, cut if wanted in ("auto", "never") else Path(wanted))
    step, own, rows, frozen = settled(recipe, accelerator, make, first, rows)
    check_adapted(step, frozen)
    if rank() == 0:
        sys.stderr.writelines(f"{run}: {line}\n" for line in said)
        if doubt := batchnorm_doubt(step):
            sys.stderr.write(f"warning: {doubt}\n")
    return Parts(recipe, data, step, own, total_steps(recipe, data), frozen, None if rows == local else rows)


def begun(step: Step, recipe: Recipe, start: str | None, tokenizer: Tokenizer | None) -> list[str]:
    """The weights that training begins with, and adapters beside them; what to say of it."""
    said = [] if start is None else [f"starts from {load_init(step, recipe, start, tokenizer)}"]
    adapt(recipe, step)
    return said


def check_adapted(step: Step, frozen: Sequence[str]) -> None:
    """A layer whose weights are read elsewhere than in its own forward would leave its adapter without effect."""
    lost = [name for name in frozen if in_names([name])]
    if lost:
        layer = lost[0].partition(MARK)[0]
        key = next(
            key_of(each) for name, each in step.named_modules() if hasattr(each, KEY) and layer.startswith(f"{name}.")
        )
        raise UniclError(f"{key}.lora: no loss reaches the adapter of {layer}", f"name others in {key}.lora.targets")


def keep_parts(parts: Parts, run: Path) -> None:
    """What a stage writes before its first step: words, the resolved recipe, files that towers need."""
    keep_words(run, parts.data, parts.tokenizer)
    write_atomic(run / RESOLVED, dump(parts.recipe))
    if checkpoint_files.newest(run / CHECKPOINTS) is None:
        store_towers(parts.step, run)


def keep_words(run: Path, data: Data, tokenizer: Tokenizer | None) -> None:
    """What turns words into numbers and back: classes, templates, the tokenizer."""
    names = [{"key": c.key, "names": list(c.names)} for c in data.classes]
    length = tokenizer.context_length if tokenizer is not None else 0
    facts = {"classes": names, "templates": list(data.templates), "context_length": length}
    write_atomic(run / CLASSES, json.dumps(facts, indent=1, ensure_ascii=False))
    if isinstance(tokenizer, TextTokenizer):
        tokenizer.save(run / TOKENIZER)


def check_unchanged(data: Data, folder: Path) -> None:
    """A run goes on only with the corpora it began with: tokenizer, classes and order came from them."""
    known = checkpoint_files.read_facts(folder)["corpora"].items()
    changed = [name for name, old in known if data.checksums.get(name, old) != old]
    if changed:
        raise UniclError(
            f"{', '.join(changed)}: the corpus has changed since {folder} was written",
            "put the old corpus back, or start a new run with --run-dir",
        )


def check_batchnorm(step: Step, chunks: int) -> None:
    """Statistics of a part of a batch are not the batch's."""
    if chunks > 1 and has_batch_statistics(step):
        raise UniclError(
            "batch.micro would give BatchNorm other statistics than the whole batch",
            "set batch.micro=auto, or take a backbone without BatchNorm",
        )


def batchnorm_doubt(step: Step) -> str | None:
    """What to say of statistics of one process's share."""
    if world_size() == 1 or torch.cuda.is_available() or not has_batch_statistics(step):
        return None
    return "BatchNorm sees each process's share alone on the CPU; results depend on --devices"


def stream(
    recipe: Recipe,
    data: Data,
    tokenizer: Tokenizer | None,
    step: nn.Module,
    start: int,
    steps: int,
    workers: int,
    *,
    offset: int = 0,
) -> Any:
    """(step, Batch) of this rank from ``start`` on, on the model's device; step n takes what n + ``offset`` would."""
    draws = Draws(data.order, start + offset, steps + offset, rank(), world_size())
    inner = cast("Step", bare(step))
    device = next(inner.parameters()).device
    hooks: list[Any] = [part.extra for part in (inner.model, inner.loss) if hasattr(part, "extra")]
    made = batches(
        data.mix,
        draws,
        cast("TextTokenizer | None", tokenizer),
        caption_targets=recipe.data.caption_targets,
        extra=Extra(hooks),
        distinct=not inner.drops_texts(),
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    ready = ahead(made) if device.type == "cuda" and workers else made  # on a CPU it would only take the step's cores
    there = on_device(ready, device, partial(augmented, late=data.late))
    return there if not offset else ((at - offset, batch) for at, batch in there)


def augmented(batch: Batch, there: Batch, *, late: DeviceAugment | None) -> Batch:
    """The batch on the device with what the loader has left to do there."""
    return there if late is None else there._replace(images=late(there.images, batch.draws))


def resume(
    wanted: str, run: Path, parts: Parts, step: nn.Module, optimizer: Any, average: Average | None
) -> dict[str, Any] | None:
    """``trainer.json`` of the checkpoint that was loaded; None for a run that begins."""
    home = run / CHECKPOINTS
    own = checkpoint_files.newest(home)
    wanted = "auto" if own is not None and is_restarted() else wanted
    folder = own if wanted == "auto" else None if wanted == "never" else Path(wanted)
    if own is not None and (folder is None or folder.resolve().parent != home.resolve()):
        raise UniclError(f"{run}: holds checkpoints", "give another --run-dir, or --resume auto to continue them")
    lost = checkpoint_files.list_damaged(home) if wanted == "auto" else []
    if lost and folder is None:  # to begin again would overwrite what may be fixed
        names = ", ".join(each.name for each in lost)
        hint = "delete them to begin again, or give another --run-dir"
        raise UniclError(f"{home}: no checkpoint is whole ({names})", hint)
    if rank() == 0:
        sys.stderr.writelines(f"warning: {each}: is damaged: passed over\n" for each in lost)
    if folder is None:
        return None
    if not checkpoint_files.is_whole(folder):
        raise UniclError(
            f"--resume {wanted}: is no whole checkpoint", "give a directory like RUN/checkpoints/step-00000100"
        )
    facts = checkpoint_files.read_facts(folder)
    check_unchanged(parts.data, folder)
    load_state(folder, step, optimizer, average)
    torch.set_num_threads(facts["threads"])  # another number sums in another order
    if rank() == 0:
        sys.stderr.write(f"{run}: continues after step {facts['step']} of {parts.steps}\n")
    return facts


def load_state(folder: Path, step: nn.Module, optimizer: Any, average: Average | None) -> None:
    """Weights, optimizer state and average of a checkpoint."""
    checkpoint.load_weights(bare(step), checkpoint.read_tensors(folder / checkpoint_files.MODEL), str(folder))
    checkpoint.load_optimizer(step, optimizer, folder / checkpoint_files.OPTIM)
    if average is not None:
        average.load(checkpoint.read_tensors(folder / checkpoint_files.EMA))
