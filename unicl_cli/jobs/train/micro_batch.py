"""How many rows are encoded at once: as many as fit into memory, found before the first step and kept for the run."""

import contextlib
import math
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from unicl_cli.contracts import NO_TEXT, Batch, Tokenizer
from unicl_cli.core import checkpoint_files
from unicl_cli.core.byte_size import binary_size
from unicl_cli.core.dist import gather, rank, rehearsal, shard, sum_over_ranks, world_size
from unicl_cli.core.loop import Step, freeze, reached
from unicl_cli.core.memory import is_out_of_memory, room
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.memory import states
from unicl_cli.recipe.schema import Recipe

MARGIN = 0.1
"""Share of a device's memory that the rehearsal leaves free: for fragments, and for what other libraries take."""
LESS = "take a smaller batch.size, more processes, parallel.grad_checkpoint=true or parallel.strategy=fsdp2"
Own = TypeVar("Own")


class Shortage(NamedTuple):
    """The first rank that had too little memory, and how much the poorest of them have (infinite: nobody says)."""

    rank: int
    room: float

    def __str__(self) -> str:
        return f"the memory of rank {self.rank}" if math.isinf(self.room) else binary_size(self.room)


def chunks_of(local: int, rows: int) -> int:
    """Parts in which a share of ``local`` rows is encoded, at most ``rows`` at once."""
    return -(-local // rows)


def sharded(recipe: Recipe) -> bool:
    return recipe.parallel.strategy == "fsdp2" and world_size() > 1


def first_rows(recipe: Recipe, local: int, folder: Path | None) -> int:
    """The recipe's number, else that of the checkpoint that goes on (rounding depends on it), else all rows."""
    wanted: Any = recipe.batch.micro
    if wanted == "auto" and folder is not None and checkpoint_files.is_whole(folder):
        wanted = checkpoint_files.read_facts(folder).get("micro")
    return min(wanted, local) if isinstance(wanted, int) else local


def settled(
    recipe: Recipe,
    accelerator: Any,
    make: Callable[[int], tuple[Step, Own]],
    batch_of: Callable[[Step, Own], Batch],
    rows: int,
) -> tuple[Step, Own, int, list[str]]:
    """The model, what comes with it, rows at once, as many up to ``rows`` as every rank has memory for, frozen names.

    ``make(rows)`` builds it, each time with the same weights. One that is to be sharded comes back whole, on the CPU;
    any other is on its device.
    """
    local, device = recipe.batch.size // world_size(), accelerator.device
    step, own = make(rows)
    batch, bound = batch_of(step, own), room(device)  # now: what fails leaves its pages mapped
    short: Shortage | None = None
    while True:
        found = rehearsed(recipe, accelerator, step, batch, bound)
        again = shortage(device, 0 if found is not None else bound or math.inf)
        if found is not None and again is None:
            break
        short = again
        if recipe.batch.micro != "auto" or rows == 1 or has_batch_statistics(step):
            raise too_large(recipe, step, rows, short)
        del step
        clear_device_cache(garbage_collection=True)
        rows = -(-rows // 2)
        step, own = make(rows)
    if sharded(recipe):
        step, own = make(rows)
    if short is not None and rank() == 0:
        sys.stderr.write(f"batch.micro: {rows} rows at once (of {local}): more did not fit into {short}\n")
    return step, own, rows, freeze(step, sum_over_ranks(found))


def rehearsed(recipe: Recipe, accelerator: Any, step: Step, batch: Batch, bound: int | None) -> Tensor | None:
    """Which parameters this rank's loss on ``batch`` reaches; None where ``bound`` is too little for such a step.

    What the optimizer and the average are going to take is set aside meanwhile.
    """
    device = accelerator.device
    kept = states(recipe, step, world_size() if sharded(recipe) else 1)
    if sharded(recipe) or world_size() == 1:
        del kept["gradients"]  # they come and go; DDP has a place for all of them all the time
    aside = 0 if bound is None else sum(kept.values()) - kept["weights"] + int(MARGIN * bound)
    try:
        with rehearsal():
            module = shard(step, device.type) if sharded(recipe) else step.to(device)
            held = torch.empty(aside, dtype=torch.uint8, device=device)
            found = reached(module, batch, accelerator)
            del held
            return found
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def largest(batch: Batch, tokenizer: Tokenizer | None) -> Batch:
    """The batch with another text of full length for each row; as it is where parts have columns of their own."""
    if tokenizer is None or batch.extra:
        return batch
    rows, end = len(batch.text_index), getattr(tokenizer, "eot_id", tokenizer.vocab_size - 1)
    random = torch.Generator().manual_seed(0)
    cells = (rows, tokenizer.context_length)
    tokens = torch.randint(max(1, tokenizer.vocab_size - 1), cells, generator=random)  # equal ones would be packed
    tokens = torch.where(tokens < end, tokens, tokens + 1).clamp(max=tokenizer.vocab_size - 1)
    tokens[:, -1] = end  # and none ends before the last
    index = torch.where(batch.text_index == NO_TEXT, batch.text_index, torch.arange(rows))
    return batch._replace(tokens=tokens, text_index=index)


def shortage(device: torch.device, lacking: float) -> Shortage | None:
    """The poorest rank among those to whom their memory of ``lacking`` bytes was too little; 0: it was enough.

    None where it was for all. Every rank must ask.
    """
    rooms = gather(torch.tensor([float(lacking)], device=device)).tolist()
    poor = [(bytes_, number) for number, bytes_ in enumerate(rooms) if bytes_]
    return Shortage(*reversed(min(poor))) if poor else None


def has_batch_statistics(step: Step) -> bool:
    """Has the model BatchNorm in training, whose statistics of a part of a batch are not the batch's?"""
    kind: Any = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
    return any(isinstance(m, kind) and m.training for m in step.model.modules())


def too_large(recipe: Recipe, step: Step, rows: int, short: Shortage | None) -> UniclError:
    """A step does not fit, and nothing that would leave the numbers as they are is left to try."""
    held = ", ".join(f"{name} {binary_size(bytes_)}" for name, bytes_ in states(recipe, step, 1).items())
    local = recipe.batch.size // world_size()
    what = f"a step of {local} rows, {rows} at once, does not fit into {short} ({held}, and what a step computes)"
    if has_batch_statistics(step):
        return UniclError(f"{what}; its BatchNorm needs all rows at once", LESS)
    if recipe.batch.micro != "auto":
        return UniclError(f"batch.micro={recipe.batch.micro}: {what}", "set batch.micro=auto, or a smaller number")
    return UniclError(what, LESS)


@contextlib.contextmanager
def advised(recipe: Recipe, micro: int | None, step: Step) -> Generator[None]:
    """An out-of-memory in the middle of a run becomes one line that says which rank, how large, and what to set."""
    local = recipe.batch.size // world_size()
    rows = micro or local
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        less = LESS if rows == 1 or has_batch_statistics(step) else f"set batch.micro={-(-rows // 2)}"
        raise UniclError(
            f"rank {rank()} of {world_size()}: out of memory in a step of {local} rows, {rows} at once: {reason}",
            f"{less}; the same command goes on from the last checkpoint",
        ) from error
