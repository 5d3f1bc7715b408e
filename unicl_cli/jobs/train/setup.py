"""The set-up of one training stage: all that is built or loaded before its loop."""

import json
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from unicl_cli import __version__
from unicl_cli.build.data import TrainingData, build_data, check_learnable
from unicl_cli.build.lora import MARK, has_adapters
from unicl_cli.build.model import store_towers
from unicl_cli.build.optimizer import recipe_warnings
from unicl_cli.build.param_groups import KEY, recipe_key
from unicl_cli.build.workers import worker_warnings
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.dist import bare, rank, sum_over_ranks, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.loop import Step, freeze_unreached
from unicl_cli.core.machine import cores
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError, write_line
from unicl_cli.inference.scorer import check_prompt_count
from unicl_cli.jobs.evaluators.candidates import choose_candidates
from unicl_cli.jobs.overlap import find_overlap, recipes_of
from unicl_cli.jobs.train.blame import blame_parts
from unicl_cli.jobs.train.blueprint import Blueprint, has_batch_statistics, warn
from unicl_cli.jobs.train.facts import read_training_facts
from unicl_cli.jobs.train.micro_batch import first_rows, fit_micro_batch
from unicl_cli.jobs.train.pixel_probe import FrozenImages
from unicl_cli.jobs.train.sizes import Sizes, sizes_of
from unicl_cli.launch.process import is_restarted
from unicl_cli.recipe.load import check_shares
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import dump, recipe_hash
from unicl_cli.runs.folder import CHECKPOINTS, CLASSES, RESOLVED, TOKENIZER, run_of
from unicl_cli.runs.place import find_differences, format_differences
from unicl_cli.storage.files import write_atomic
from unicl_cli.tower_contracts import Tokenizer

THREADS_PER_CORE = 16
"""A checkpoint of a machine with more threads continues with as many; beyond this, it would not end."""
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "tokenizers", "numpy", "pyarrow", "pillow")


class Parts(NamedTuple):
    """All that a training consists of, on this rank."""

    recipe: Recipe
    data: TrainingData
    step: nn.Module
    tokenizer: Tokenizer | None
    sizes: Sizes
    frozen: list[str]
    micro: int | None
    """Rows encoded at once; None: all."""
    frozen_images: FrozenImages | None
    """The frozen image tower; None if it learns, or if no image cache is wanted."""


def set_up(recipe: Recipe, accelerator: Any, run: Path, resume_from: str, start: str | None) -> Parts:
    """Build a stage: its data, its model with as many rows at once as fit, its start weights; freeze idle parameters.

    ``resume_from``: the checkpoint to continue from: auto, never, or a directory. ``start``: the model to start from.
    """
    check_shares(recipe, world_size())
    data = build_data(recipe)
    check_learnable(recipe, data)
    warn([*recipe_warnings(recipe, data), *worker_warnings(recipe)])
    warn(overlap_warnings(recipe, start))
    own = checkpoint_files.newest(run / CHECKPOINTS)
    if own is not None:
        check_unchanged(data, own)  # before anything of the run is written again

    sizes = sizes_of(recipe, data, world_size())
    first = first_rows(recipe.batch.micro, sizes.local, own if resume_from in ("auto", "never") else Path(resume_from))
    if own is None:
        blueprint = Blueprint(recipe, data, sizes, start=start)
    else:
        blueprint = Blueprint(recipe, data, sizes, trained=run)  # its weights will be loaded later
    with blame_parts():
        (step, tokenizer, origin), rows, found = fit_micro_batch(blueprint, accelerator, first)

    check_eval_prompts(recipe, data, step.loss)
    frozen = freeze_unreached(step, sum_over_ranks(found.reached))
    check_adapters(step, frozen)
    if origin is not None and rank() == 0:
        write_line(f"{run}: starts from {origin}")
    warn(batchnorm_warnings(step, sizes.world))
    micro = None if rows == sizes.local else rows
    return Parts(recipe, data, step, tokenizer, sizes, frozen, micro, found.frozen_images)


def check_eval_prompts(recipe: Recipe, data: TrainingData, loss: Any) -> None:
    """Raise UniclError if a validation would score each image with very many prompts, before the first step."""
    for entry in recipe.eval if loss.score == "pair" else ():
        classes = len(choose_candidates(open_corpus(entry.corpus).classes, data.classes, entry.candidates).classes)
        check_prompt_count(loss, classes, classes * len(data.templates))


def overlap_warnings(recipe: Recipe, start: str | None) -> list[str]:
    """Return a warning for each of ``eval`` with images that this training, or that of its start weights, learns."""
    trained = [recipe, *(recipes_of(start) if start else ())]
    warnings: list[str] = []
    for entry in recipe.eval:
        corpus = open_corpus(entry.corpus)
        split = corpus.eval_split(entry.split)
        if (found := find_overlap(trained, corpus, split)).trained:
            warnings.append(f"eval: {entry.corpus} {split}: {found.warning()}")
    return warnings


def check_unchanged(data: TrainingData, folder: Path) -> None:
    """Raise UniclError if a corpus has changed: tokenizer, classes and order of samples came from it."""
    known = read_training_facts(folder)["corpora"].items()
    changed = [name for name, old in known if data.checksums.get(name, old) != old]
    if changed:
        raise UniclError(
            f"{', '.join(changed)}: the corpus has changed since {folder} was written",
            "put the old corpus back, or start a new run with --run-dir",
        )


def check_adapters(step: Step, frozen: Sequence[str]) -> None:
    """Raise UniclError for an adapter without effect: its layer's weights are read outside the layer's own forward."""
    lost = [name for name in frozen if has_adapters([name])]
    if lost:
        layer = lost[0].partition(MARK)[0]
        key = next(
            recipe_key(each)
            for name, each in step.named_modules()
            if hasattr(each, KEY) and layer.startswith(f"{name}.")
        )
        raise UniclError(f"{key}.lora: no loss reaches the adapter of {layer}", f"name others in {key}.lora.targets")


def batchnorm_warnings(step: Step, world: int) -> list[str]:
    """Return a warning if BatchNorm's statistics are those of one process's share of a batch."""
    if world == 1 or torch.cuda.is_available() or not has_batch_statistics(step):
        return []
    return ["BatchNorm sees only its own process's rows on the CPU: results depend on --devices"]


# -- the files of a run -----------------------------------------------------------------------------------------------


@cache
def versions() -> dict[str, str]:
    """Return the versions of everything that can change a number."""
    return {"unicl": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def platform_facts() -> dict[str, Any]:
    """Return the facts about this machine for ``env.json``."""
    return {"versions": versions(), "platform": platform.platform(), "threads": torch.get_num_threads()}


def write_parts(parts: Parts, run: Path) -> None:
    """Write the files of a stage that precede its first step: words, the resolved recipe, files that towers need."""
    write_words(run, parts.data, parts.tokenizer)
    write_atomic(run / RESOLVED, dump(parts.recipe))
    if checkpoint_files.newest(run / CHECKPOINTS) is None:
        store_towers(parts.step, run)


def write_words(run: Path, data: TrainingData, tokenizer: Tokenizer | None) -> None:
    """Write the classes, the templates and the tokenizer."""
    places = ("group", "parent")
    names = [
        {"key": c.key, "names": list(c.names), **{at: getattr(c, at) for at in places if getattr(c, at)}}
        for c in data.classes
    ]
    length = tokenizer.context_length if tokenizer is not None else 0
    facts: dict[str, Any] = {"classes": names, "templates": list(data.templates), "context_length": length}
    if data.label_sets is not None:
        facts["most_labels"] = data.label_sets.width
    if isinstance(tokenizer, TextTokenizer):
        facts["clean"] = tokenizer.clean
    write_atomic(run / CLASSES, json.dumps(facts, indent=1, ensure_ascii=False))
    if isinstance(tokenizer, TextTokenizer):
        tokenizer.save(run / TOKENIZER)


# -- the checkpoint to continue from ----------------------------------------------------------------------------------


def resume(
    resume_from: str, run: Path, parts: Parts, step: nn.Module, optimizer: Any, average: Average | None
) -> dict[str, Any] | None:
    """Load the checkpoint to continue from; return its ``trainer.json``, or None for a run that begins."""
    folder = checkpoint_to_load(resume_from, run)
    if folder is None:
        return None
    if not checkpoint_files.is_whole(folder):
        raise UniclError(
            f"--resume {resume_from}: not a whole checkpoint", "give a directory like RUN/checkpoints/step-00000100"
        )
    facts = read_training_facts(folder)
    if facts["step"] > parts.sizes.steps:
        message = f"{folder}: is of step {facts['step']:,}, but this training has {parts.sizes.steps:,}"
        raise UniclError(message, "train longer, or give a checkpoint of an earlier step")
    check_unchanged(parts.data, folder)
    warn(recipe_differences(folder, facts.get("recipe"), parts))
    load_state(folder, step, optimizer, average)
    torch.set_num_threads(min(facts["threads"], THREADS_PER_CORE * cores()))  # another number sums in another order
    if rank() == 0:
        write_line(f"{run}: continues after step {facts['step']} of {parts.sizes.steps}")
    return facts


def checkpoint_to_load(resume_from: str, run: Path) -> Path | None:
    """Return the checkpoint that ``resume_from`` means, None for none; refuse one that would lose the run's own."""
    home = run / CHECKPOINTS
    own = checkpoint_files.newest(home)
    if own is not None and is_restarted():
        resume_from = "auto"
    given = None if resume_from == "never" else Path(resume_from)
    folder = own if resume_from == "auto" else given
    if own is not None and (folder is None or folder.resolve().parent != home.resolve()):
        raise UniclError(
            f"{run}: the directory already holds checkpoints", "give another --run-dir, or continue with --resume auto"
        )
    lost = checkpoint_files.list_damaged(home) if resume_from == "auto" else []
    if lost and folder is None:  # to begin again would overwrite what may still be repaired
        names = ", ".join(each.name for each in lost)
        hint = "delete them to start again, or give another --run-dir"
        raise UniclError(f"{home}: no checkpoint is whole ({names})", hint)
    warn([f"skipping damaged checkpoint {each}" for each in lost])
    return folder


def recipe_differences(folder: Path, then: str | None, parts: Parts) -> list[str]:
    """Return a warning if a checkpoint was trained with a recipe that gives other numbers.

    ``then`` is its hash, which counts where the run has no sound recipe.
    """
    what = ""
    try:
        found = find_differences(run_of(folder), parts.recipe)
    except (UniclError, FileNotFoundError):
        if then in (None, recipe_hash(parts.recipe)):
            return []
    else:
        if not found:
            return []
        what = f" ({format_differences(found)})"
    return [f"{folder}: was trained with another recipe{what}: the run continues with other numbers than either"]


def load_state(folder: Path, step: nn.Module, optimizer: Any, average: Average | None) -> None:
    """Load the weights, the optimizer state and the average of a checkpoint."""
    checkpoint.load_weights(bare(step), checkpoint.read_tensors(folder / checkpoint_files.MODEL), str(folder))
    checkpoint.load_optimizer(step, optimizer, folder / checkpoint_files.OPTIM)
    if average is not None:
        average.load(checkpoint.read_tensors(folder / checkpoint_files.EMA))
