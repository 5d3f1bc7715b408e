"""`unicl train --dry-run`: what a recipe comes to, without a step of training."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from unicl_cli.build.data import Data, build_data, build_tokenizer, check_learnable, total_steps
from unicl_cli.build.model import adapt, build_step
from unicl_cli.build.optimizer import doubts
from unicl_cli.contracts import Tokenizer
from unicl_cli.core.byte_size import binary_size
from unicl_cli.core.loop import Step
from unicl_cli.core.machine import machine_memory
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.memory import METHOD, Shape, flops, states, step_bytes, step_bytes_in_parts, unreal
from unicl_cli.jobs.train.micro_batch import LESS, MARGIN, chunks_of, has_batch_statistics
from unicl_cli.recipe.load import check_shares
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stage_of
from unicl_cli.recipe.text import dump

BYTES = ("checkpoint_bytes", "memory")


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def facts(recipe: Recipe, run: Path, world: int, card: float | None = None) -> dict[str, Any]:
    """Everything that is known before the first step; the model is built on no device at all.

    ``card``: the bytes of a device, to find out how many rows at once would fit there.
    """
    check_shares(recipe, world)
    data = build_data(recipe)
    check_learnable(recipe, data)
    for doubt in doubts(recipe, data):
        sys.stderr.write(f"warning: {doubt}\n")
    fitted = cache(partial(build_tokenizer, recipe, data))  # only if the model asks for it
    local = recipe.batch.size // world
    chunks = 1 if recipe.batch.micro == "auto" else -(-local // recipe.batch.micro)
    step, tokenizer = shapes_of(recipe, data, fitted, chunks)
    steps = total_steps(recipe, data)
    towers = {name: parameters(child) for name, child in step.model.named_children()}
    length = None if tokenizer is None else tokenizer.context_length
    kinds = dict.fromkeys(strand.kind for strand in data.mix.strands)
    found: dict[str, Any] = {
        "schema": "unicl/dry-run/1",
        "run": str(run),
        "processes": world,
        "batch": recipe.batch.size,
        "batch_per_process": local,
        "micro": -(-local // chunks),
        "steps": steps,
        "samples": steps * recipe.batch.size,
        "tokens_at_most": steps * recipe.batch.size * (length or 0),
        "rows": {kind: sum(s.size for s in data.mix.strands if s.kind == kind) for kind in kinds},
        "classes": len(data.classes),
        "vocabulary": None if tokenizer is None else tokenizer.vocab_size,
        "context_length": length,
        "parameters": parameters(step),
        "parameters_trained": sum(p.numel() for p in step.parameters() if p.requires_grad),
        "parameters_of": {**towers, "loss": parameters(step.loss)},
        "checkpoint_bytes": checkpoint_bytes(recipe, step),
    }
    shape = Shape(local, recipe.data.views, recipe.data.image_size, length)

    def build(chunks: int) -> Step:
        return shapes_of(recipe, data, fitted, chunks)[0]

    estimate = Estimate(recipe, build, shape, world, card)
    return found | costs(estimate, -(-local // chunks))


def shapes_of(
    recipe: Recipe, data: Data, fitted: Callable[[], TextTokenizer], chunks: int
) -> tuple[Step, Tokenizer | None]:
    """Model and loss with shapes and no numbers: no memory, no weights are loaded; and what tokenises their texts."""
    with torch.device("meta"):
        step, tokenizer = build_step(recipe, fitted, data.classes, chunks)
        adapt(recipe, step)
    return step.train(), tokenizer


def built(recipe: Recipe) -> None:
    """Builds the model of each stage without memory or weights. Raises UniclError for what fits nowhere else."""
    for number in range(max(1, len(recipe.stages))):
        stage = stage_of(recipe, number)
        data = build_data(stage)
        check_learnable(stage, data)
        shapes_of(stage, data, partial(build_tokenizer, stage, data), 1)


def checkpoint_bytes(recipe: Recipe, step: Step) -> int:
    """Weights, what the optimizer keeps (16 bytes a parameter less the gradient), and the average."""
    kept = states(recipe, step, 1)
    return sum(kept.values()) - kept["gradients"]


class Estimate(NamedTuple):
    """A recipe's step on one of ``world`` processes; ``build(chunks)`` gives its model with shapes alone."""

    recipe: Recipe
    build: Callable[[int], Step]
    shape: Shape
    world: int
    card: float | None

    @property
    def half(self) -> bool:
        """Will towers run in 16 bits? A card that is named is taken for one that has bf16."""
        if self.recipe.precision != "auto":
            return self.recipe.precision != "fp32"
        return self.card is not None or (torch.cuda.is_available() and torch.cuda.is_bf16_supported())

    def memory(self, at_once: int) -> dict[str, int]:
        """Bytes of one rank with so many rows encoded at once."""
        strategy = "fsdp2" if self.recipe.parallel.strategy == "fsdp2" else "ddp"
        held = states(self.recipe, self.build(1), self.world if strategy == "fsdp2" else 1)

        def taken(rows: int) -> int:
            step, shape = self.build(chunks_of(rows, at_once)), self.shape._replace(rows=rows)
            return step_bytes(step, unreal(step), shape, world=self.world, strategy=strategy, half=self.half)

        alive = step_bytes_in_parts(taken, self.shape.rows, at_once)
        apart = self.world > 1 and strategy == "ddp"  # else the gradients are among what is alive
        held["activations"] = alive if apart else alive - held["gradients"]
        return {**held, "total": sum(held.values())}

    def fitting(self, room: float, at_once: int, memory: Mapping[str, int]) -> int | None:
        """The rows at once that would fit into ``room``, a tenth of it left free; None where one row does not.

        ``memory`` is that of ``at_once`` rows. Half of them take more than half of what is computed, so sizes that are
        too much even by their share are passed over: each look at one takes seconds.
        """
        bound, rows, total = (1 - MARGIN) * room, at_once, memory["total"]
        while total > bound:
            if rows == 1 or has_batch_statistics(self.build(1)):
                return None
            rows = -(-rows // 2)
            while rows > 1 and memory["total"] - memory["activations"] * (1 - rows / at_once) > bound:
                rows = -(-rows // 2)
            total = self.memory(rows)["total"]
        return rows


def costs(estimate: Estimate, at_once: int) -> dict[str, Any]:
    """FLOPs and memory of one rank; a model that cannot run without numbers has none, and the reason."""
    recipe, step = estimate.recipe, estimate.build(1)
    try:
        with unreal(step):
            found: dict[str, Any] = {"flops_of_one": flops(step, estimate.shape)}
        found["memory"] = estimate.memory(at_once)
        room = estimate.card or memory_of_a_process(estimate.world)
        if estimate.card is not None or found["memory"]["total"] > room:
            found["micro_that_fits"] = estimate.fitting(room, at_once, found["memory"])
    except UniclError:  # a model and a loss that do not fit each other, or the data
        raise
    except Exception as error:  # noqa: BLE001 - any part may ask for numbers, or for columns that only a real batch has
        memory = states(recipe, estimate.build(1), estimate.world if recipe.parallel.strategy == "fsdp2" else 1)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"memory": memory, "memory_method": f"without activations: the model needs a real batch ({reason})"}
    return {**found, "memory_method": METHOD.format("bf16" if estimate.half else "float32")}


def shown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(key, item)}" for name, item in value.items())
    if key in BYTES:
        return binary_size(value)
    return (
        f"{value / 1e9:.2f} GFLOP" if key == "flops_of_one" else f"{value:,}" if isinstance(value, int) else str(value)
    )


def dry_run(recipe: Recipe, run: Path, world: int, *, as_json: bool, card: str | None = None) -> None:
    """Facts as a table or JSON; with a table the resolved recipe follows."""
    found = facts(recipe, run, world, None if card is None else bytes_of(card))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    table = Table(title=f"{recipe.name}: would train", show_header=False)
    for key, value in found.items():
        if key != "schema" and value is not None:
            table.add_row(key.replace("_", " "), shown(key, value))
    console = Console()
    console.print(table)
    console.print(dump(recipe), markup=False, highlight=False, soft_wrap=True)
    if "micro_that_fits" in found:
        room = bytes_of(card) if card is not None else memory_of_a_process(found["processes"])
        console.print(f"note: {advice(found, room)}", soft_wrap=True)


def advice(found: Mapping[str, Any], room: float) -> str:
    """What to do about a memory of ``room`` bytes."""
    needed, rows, all_ = binary_size(found["memory"]["total"]), found["micro_that_fits"], found["batch_per_process"]
    if rows is None:
        return f"{needed} are more than {binary_size(room)}, even one row at a time or with BatchNorm: {LESS}"
    if rows == found["micro"]:
        return f"{needed} fit into {binary_size(room)}: {rows} of {all_} rows at once"
    return (
        f"{needed} are more than {binary_size(room)}: "
        f"batch.micro=auto would encode about {rows} of {all_} rows at once there"
    )


def bytes_of(text: str) -> float:
    """`24GiB`, `24GB`, `500MiB`; a bare number is GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([GM]i?B?)?", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UniclError(f"--memory {text}: is no amount of memory", "write it like 24GiB")
    unit = (match[2] or "GiB").lower()
    return float(match[1]) * (1024 if "i" in unit else 1000) ** (3 if unit[0] == "g" else 2)


def memory_of_a_process(world: int) -> float:
    """Bytes: the first GPU's, else an equal share of the machine's; without bound where nothing says."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return (machine_memory() or math.inf) / world
