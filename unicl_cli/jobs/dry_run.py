"""`unicl train --dry-run`: what a recipe comes to, without a step of training."""

import json
import math
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from unicl_cli.build import Data, build_data, build_step, build_tokenizer, check_learnable, doubts, total_steps
from unicl_cli.contracts import Tokenizer
from unicl_cli.core.loop import Step
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.jobs.memory import METHOD, Shape, activations, flops, states, unreal
from unicl_cli.recipe import Recipe, check_shares, dump

BYTES = ("checkpoint_bytes", "memory")


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def facts(recipe: Recipe, run: Path, world: int) -> dict[str, Any]:
    """Everything that is known before the first step; the model is built on no device at all."""
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
    kinds = {strand.kind for strand in data.mix.strands}
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
    whole = step if chunks == 1 else shapes_of(recipe, data, fitted, 1)[0]
    shape = Shape(local, recipe.data.views, recipe.data.image_size, length)
    return found | costs(recipe, step, whole, shape, chunks, world)


def shapes_of(
    recipe: Recipe, data: Data, fitted: Callable[[], TextTokenizer], chunks: int
) -> tuple[Step, Tokenizer | None]:
    """Model and loss with shapes and no numbers: no memory, no weights are loaded; and what tokenises their texts."""
    with torch.device("meta"):
        step, tokenizer = build_step(recipe, fitted, data.classes, chunks)
    return step.train(), tokenizer


def built(recipe: Recipe) -> None:
    """Builds the model of each stage without memory or weights. Raises UniclError for what fits nowhere else."""
    for number in range(max(1, len(recipe.stages))):
        stage = recipe.stage(number)
        data = build_data(stage)
        check_learnable(stage, data)
        shapes_of(stage, data, partial(build_tokenizer, stage, data), 1)


def checkpoint_bytes(recipe: Recipe, step: Step) -> int:
    """Weights, what the optimiser keeps (16 bytes a parameter less the gradient), and the average."""
    kept = states(recipe, step, 1)
    return sum(kept.values()) - kept["gradients"]


def costs(recipe: Recipe, step: Step, whole: Step, shape: Shape, chunks: int, world: int) -> dict[str, Any]:
    """FLOPs and memory of one rank; a model that cannot run without numbers has none, and the reason."""
    memory: dict[str, Any] = states(recipe, step, world if recipe.parallel.strategy == "fsdp2" else 1)
    try:
        with unreal(step, whole):
            found: dict[str, Any] = {"flops_of_one": flops(whole, shape)}
            memory["activations"] = activations(step, whole, shape, chunks)
    except Exception as error:  # noqa: BLE001 - any part may ask for numbers, or for columns that only a real batch has
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"memory": memory, "memory_method": f"without activations: the model needs a real batch ({reason})"}
    memory["total"] = sum(memory.values())
    return {**found, "memory": memory, "memory_method": METHOD}


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def shown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(key, item)}" for name, item in value.items())
    if key in BYTES:
        return size(value)
    return (
        f"{value / 1e9:.2f} GFLOP" if key == "flops_of_one" else f"{value:,}" if isinstance(value, int) else str(value)
    )


def dry_run(recipe: Recipe, run: Path, world: int, *, as_json: bool) -> None:
    """Facts as a table or JSON; with a table the resolved recipe follows."""
    found = facts(recipe, run, world)
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
    needed, room = found["memory"].get("total", 0), memory_of_a_process(found["processes"])
    if needed > room:
        hint = (
            "a smaller batch.micro encodes fewer rows at once and changes no number (towers with BatchNorm: batch.size)"
        )
        console.print(f"note: {size(needed)} are more than the {size(room)} of a process here: {hint}", soft_wrap=True)


def memory_of_a_process(world: int) -> float:
    """Bytes: the first GPU's, else an equal share of the machine's; without bound where nothing says."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world
    except (AttributeError, ValueError, OSError):
        return math.inf
