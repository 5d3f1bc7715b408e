"""The number of rows that are encoded at once: all that fit into memory, found before the first step."""

import contextlib
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from unicl_cli.contracts import NO_TEXT, Batch
from unicl_cli.core import checkpoint_files
from unicl_cli.core.batch_columns import LABEL_SET, NAMED, PROMPT
from unicl_cli.core.dist import gather, rank, rehearsal, shard, world_size
from unicl_cli.core.loop import Step, probe_gradients
from unicl_cli.core.memory import is_out_of_memory, memory_limit
from unicl_cli.errors import UniclError, write_line
from unicl_cli.formats import byte_size
from unicl_cli.jobs.train.blueprint import Blueprint, Built, has_batch_statistics
from unicl_cli.jobs.train.facts import read_training_facts
from unicl_cli.jobs.train.memory import state_bytes
from unicl_cli.jobs.train.pixel_probe import FrozenImages, probe_pixels
from unicl_cli.jobs.train.sizes import is_sharded
from unicl_cli.recipe.schema import Recipe
from unicl_cli.tower_contracts import Tokenizer

MARGIN = 0.1
"""Share of a device's memory that the rehearsal leaves free, for fragmentation and other libraries."""
LESS = "use a smaller batch.size, more processes, parallel.grad_checkpoint=true or parallel.strategy=fsdp2"


class Shortage(NamedTuple):
    """A rank that has too little memory, and the bytes that it has (infinite: unknown)."""

    rank: int
    memory: float

    def __str__(self) -> str:
        return f"the memory of rank {self.rank}" if math.isinf(self.memory) else byte_size(self.memory)


class Rehearsed(NamedTuple):
    """The answers of `probe_gradients` and of `probe_pixels`, which is asked only for an image cache."""

    reached: Tensor
    frozen_images: FrozenImages | None


class Fitted(NamedTuple):
    """A model that every rank has memory for, its rows at once, and what this rank's rehearsal found."""

    built: Built
    rows: int
    found: Rehearsed


def first_rows(micro: Any, local: int, folder: Path | None) -> int:
    """Return the rows at once to begin with: the recipe's ``micro``, or with auto those of a checkpoint, or all.

    A run keeps the number of its checkpoint ``folder``, since rounding depends on it.
    """
    if micro == "auto" and folder is not None and checkpoint_files.is_whole(folder):
        micro = read_training_facts(folder).get("micro")
    return min(micro, local) if isinstance(micro, int) else local


def fit_micro_batch(blueprint: Blueprint, accelerator: Any, rows: int) -> Fitted:
    """Build the model with as many rows at once, up to ``rows``, as every rank has memory for; every rank calls it.

    One rehearsed step decides; if it fails on any rank, half the rows are tried. A model that will be sharded comes
    back whole, on the CPU; any other on its device.
    """
    recipe, sizes, device = blueprint.recipe, blueprint.sizes, accelerator.device
    built = blueprint.build(rows)
    batch = blueprint.first_batch(built)
    if memory_limit(device) is not None:
        batch = longest_texts(batch, built.tokenizer)
    limit = memory_limit(device)  # before the first rehearsal: one that fails leaves its pages mapped
    last: Shortage | None = None
    while True:
        found = rehearse(recipe, accelerator, built.step, batch, limit)
        shortage = find_shortage(device, 0 if found is not None else limit or math.inf)
        if found is not None and shortage is None:
            break
        last = shortage
        if recipe.batch.micro != "auto" or rows == 1 or has_batch_statistics(built.step.model):
            raise too_large_error(recipe, sizes.local, built.step, rows, shortage)
        del built
        clear_device_cache(garbage_collection=True)
        rows = -(-rows // 2)
        built = blueprint.build(rows)
    if is_sharded(recipe, sizes.world):
        built = blueprint.build(rows)  # the rehearsed one is sharded over a pretended process group
    if last is not None and rank() == 0:
        write_line(f"batch.micro: {rows} rows at once (of {sizes.local}): more did not fit into {last}")
    return Fitted(built, rows, found)


def rehearse(recipe: Recipe, accelerator: Any, step: Step, batch: Batch, limit: int | None) -> Rehearsed | None:
    """Try one step without the other ranks; return what it shows, or None if memory runs out.

    Memory for the optimizer, the average and the margin is set aside meanwhile.
    """
    device, world = accelerator.device, world_size()
    sharded = is_sharded(recipe, world)
    kept = state_bytes(recipe, step, world if sharded else 1)
    if sharded or world == 1:
        del kept["gradients"]  # they come and go; DDP has a place for all of them all the time
    aside = 0 if limit is None else sum(kept.values()) - kept["weights"] + int(MARGIN * limit)
    try:
        with rehearsal():
            module = shard(step, device.type) if sharded else step.to(device)
            held = torch.empty(aside, dtype=torch.uint8, device=device)
            reached = probe_gradients(module, batch, accelerator)
            del held
            caches = recipe.parallel.image_cache == "auto"
            return Rehearsed(reached, probe_pixels(module, batch, accelerator) if caches else None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def longest_texts(batch: Batch, tokenizer: Tokenizer | None) -> Batch:
    """Give each row another text of full length, and a second one where it has two.

    A batch whose ``extra`` has more than one number for each row is returned as it is: it may describe the tokens. Its
    label sets and the classes that captions name do not.
    """
    if tokenizer is None or any(x.dim() > 1 for name, x in batch.extra.items() if name not in (LABEL_SET, NAMED)):
        return batch
    second = batch.extra.get(PROMPT)
    rows, end = len(batch.text_index), getattr(tokenizer, "eot_id", tokenizer.vocab_size - 1)
    random = torch.Generator().manual_seed(0)
    cells = (rows if second is None else 2 * rows, tokenizer.context_length)
    tokens = torch.randint(max(1, tokenizer.vocab_size - 1), cells, generator=random)  # equal ones would be packed
    tokens = torch.where(tokens < end, tokens, tokens + 1).clamp(max=tokenizer.vocab_size - 1)
    tokens[:, -1] = end  # and none ends before the last
    index = torch.where(batch.text_index == NO_TEXT, batch.text_index, torch.arange(rows))
    if second is None:
        return batch._replace(tokens=tokens, text_index=index)
    prompts = torch.where(second == NO_TEXT, second, rows + torch.arange(rows))
    return batch._replace(tokens=tokens, text_index=index, extra={**batch.extra, PROMPT: prompts})


def find_shortage(device: torch.device, lacking: float) -> Shortage | None:
    """Return the rank with the least memory among those that ran out; None if every rank fits. Every rank calls it.

    ``lacking``: the bytes that were too little for this rank; 0 if they were enough.
    """
    lacks = gather(torch.tensor([float(lacking)], device=device)).tolist()
    poor = [(bytes_, number) for number, bytes_ in enumerate(lacks) if bytes_]
    if not poor:
        return None
    memory, number = min(poor)
    return Shortage(number, memory)


def too_large_error(recipe: Recipe, local: int, step: Step, rows: int, shortage: Shortage | None) -> UniclError:
    """Return the error of a step that does not fit where nothing is left to try that keeps the numbers."""
    held = ", ".join(f"{name} {byte_size(bytes_)}" for name, bytes_ in state_bytes(recipe, step, 1).items())
    what = f"a step of {local} rows, {rows} at once, does not fit into {shortage} ({held}, and the step's own tensors)"
    if has_batch_statistics(step.model):
        return UniclError(f"{what}; its BatchNorm needs all rows at once", LESS)
    if recipe.batch.micro != "auto":
        return UniclError(f"batch.micro={recipe.batch.micro}: {what}", "set batch.micro=auto, or a smaller number")
    return UniclError(what, LESS)


@contextlib.contextmanager
def explain_out_of_memory(local: int, rows: int, step: Step) -> Generator[None]:
    """Turn an out-of-memory in the middle of a run into an error that names the rank, the size and what to set."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        less = LESS if rows == 1 or has_batch_statistics(step.model) else f"set batch.micro={-(-rows // 2)}"
        raise UniclError(
            f"rank {rank()} of {world_size()}: out of memory in a step of {local} rows, {rows} at once: {reason}",
            f"{less}; run the same command again to continue from the last checkpoint",
        ) from error
