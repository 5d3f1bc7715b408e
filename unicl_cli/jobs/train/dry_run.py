"""`unicl train --dry-run`: the sizes, the memory and the FLOPs of a recipe's training, without a step of it."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from unicl_cli.build.data import (
    TrainingData,
    build_data,
    build_tokenizer,
    check_learnable,
    check_texts,
    reader_of,
    total_steps,
)
from unicl_cli.build.init import adopted_tokenizer
from unicl_cli.build.media import check_media, check_rows
from unicl_cli.build.model import add_adapters, build_step
from unicl_cli.build.optimizer import recipe_warnings
from unicl_cli.core.loop import Step
from unicl_cli.core.machine import machine_memory
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError, escape_control, write_note
from unicl_cli.formats import byte_size, format_duration
from unicl_cli.jobs.train.blueprint import has_batch_statistics
from unicl_cli.jobs.train.memory import (
    METHOD,
    BatchShape,
    count_flops,
    make_fake,
    state_bytes,
    step_bytes,
    step_bytes_in_parts,
)
from unicl_cli.jobs.train.micro_batch import LESS, MARGIN
from unicl_cli.jobs.train.sizes import chunk_count, sizes_of
from unicl_cli.jobs.train.speed import estimate_time
from unicl_cli.jobs.train.stage_chain import check_stages
from unicl_cli.jobs.train.validations import check_evaluators
from unicl_cli.recipe.load import check_shares
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stages_of
from unicl_cli.recipe.text import dump
from unicl_cli.storage.json_output import print_json
from unicl_cli.tower_contracts import Tokenizer

BYTES = ("checkpoint_bytes", "memory")
LABELS = {
    "checkpoint_bytes": "bytes of a checkpoint",
    "flops_of_one": "work per image and text",
    "memory": "memory of a process",
    "memory_method": "memory counts",
    "micro": "rows at once",
    "micro_that_fits": "rows at once that fit",
    "parameters_of": "parameters by tower",
    "picture": "image",
    "time_s": "time of the steps",
    "time_from": "time taken from",
    "tokens_at_most": "tokens, at most",
}
"""Names of facts for people, where the key says too little."""


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def dry_run_facts(recipe: Recipe, run: Path, world: int, card: float | None = None) -> dict[str, Any]:
    """Return everything that is known before the first step; the model is built without memory.

    ``card``: the bytes of a device, to find out how many rows at once would fit there.
    """
    check_shares(recipe, world)
    stages: list[int] = []
    if len(recipe.stages) > 1:
        check_stages(recipe, run)
        stages = [total_steps(stage, build_data(stage)) for stage, _, _ in stages_of(recipe, run)]
    data = build_data(recipe)
    check_learnable(recipe, data)
    for warning in recipe_warnings(recipe, data):
        write_note(f"warning: {warning}")
    fit_tokenizer = cache(lambda: adopted_tokenizer(recipe, recipe.model.init) or build_tokenizer(recipe, data))
    sizes = sizes_of(recipe, data, world)
    chunks = 1 if recipe.batch.micro == "auto" else chunk_count(sizes.local, recipe.batch.micro)
    at_once = -(-sizes.local // chunks)
    step, tokenizer = build_on_meta(recipe, data, fit_tokenizer, chunks)
    check_texts(tokenizer, data)
    check_media(step, data, reader_of(recipe))
    for warning in check_rows(step, data):
        write_note(f"warning: {warning}")
    check_evaluators(recipe, step, tokenizer)
    towers = {name: count_parameters(child) for name, child in step.model.named_children()}
    length = None if tokenizer is None else tokenizer.context_length
    kinds = dict.fromkeys(strand.kind for strand in data.mix.strands)
    samples = sizes.steps * recipe.batch.size
    found: dict[str, Any] = {
        "schema": "unicl/dry-run/1",
        "run": str(run),
        "processes": world,
        "batch": recipe.batch.size,
        "batch_per_process": sizes.local,
        "micro": at_once,
        "steps": sizes.steps,
        **({"steps_of_stages": stages} if stages else {}),
        "samples": samples,
        "tokens_at_most": samples * (length or 0),
        "rows": {kind: sum(s.size for s in data.mix.strands if s.kind == kind) for kind in kinds},
        "classes": len(data.classes),
        "vocabulary": None if tokenizer is None else tokenizer.vocab_size,
        "context_length": length,
        "parameters": count_parameters(step),
        "parameters_trained": sum(p.numel() for p in step.parameters() if p.requires_grad),
        "parameters_of": {**towers, "loss": count_parameters(step.loss)},
        "checkpoint_bytes": checkpoint_bytes(recipe, step),
        **estimate_time(recipe, run.parent, world, samples),
    }

    def build(chunks: int) -> Step:
        return build_on_meta(recipe, data, fit_tokenizer, chunks)[0]

    shape = BatchShape(sizes.local, recipe.data.views, recipe.data.image_size, length)
    return found | estimate_costs(Estimate(recipe, build, shape, world, card), at_once)


def build_on_meta(
    recipe: Recipe, data: TrainingData, fit_tokenizer: Callable[[], TextTokenizer], chunks: int
) -> tuple[Step, Tokenizer | None]:
    """Build model and loss with shapes but without memory or weights; return them and the tokenizer of their texts."""
    with torch.device("meta"):
        step, tokenizer = build_step(recipe, fit_tokenizer, data.classes, chunks, **data.facts)
        add_adapters(recipe, step)
    return step.train(), tokenizer


def checkpoint_bytes(recipe: Recipe, step: Step) -> int:
    """Return the bytes of weights, optimizer state and average: with AdamW 12 per trained parameter, or 16."""
    kept = state_bytes(recipe, step, 1)
    return sum(kept.values()) - kept["gradients"]


class Estimate(NamedTuple):
    """The cost of a step on one of ``world`` processes; ``build(chunks)`` gives the model with shapes alone."""

    recipe: Recipe
    build: Callable[[int], Step]
    shape: BatchShape
    world: int
    card: float | None

    @property
    def half(self) -> bool:
        """True if towers will run in 16 bits; a card that is named is assumed to have bf16."""
        if self.recipe.precision != "auto":
            return self.recipe.precision != "fp32"
        return self.card is not None or (torch.cuda.is_available() and torch.cuda.is_bf16_supported())

    def memory(self, at_once: int) -> dict[str, int]:
        """Return the bytes of one rank that encodes ``at_once`` rows at once."""
        strategy = "fsdp2" if self.recipe.parallel.strategy == "fsdp2" else "ddp"
        held = state_bytes(self.recipe, self.build(1), self.world if strategy == "fsdp2" else 1)

        def bytes_for(rows: int) -> int:
            step, shape = self.build(chunk_count(rows, at_once)), self.shape._replace(rows=rows)
            return step_bytes(step, make_fake(step), shape, world=self.world, strategy=strategy, half=self.half)

        alive = step_bytes_in_parts(bytes_for, self.shape.rows, at_once)
        apart = self.world > 1 and strategy == "ddp"  # else what is alive includes the gradients
        held["activations"] = alive if apart else alive - held["gradients"]
        return {**held, "total": sum(held.values())}

    def rows_that_fit(self, room: float, at_once: int, memory: Mapping[str, int]) -> int | None:
        """Return the rows at once that fit into ``room`` with a tenth of it left free; None if one row does not.

        ``memory`` is that of ``at_once`` rows. Half the rows take more than half of the activations, so a size whose
        share of them is already too much is skipped: each estimate takes seconds.
        """
        bound, rows, total = (1 - MARGIN) * room, at_once, memory["total"]
        while total > bound:
            if rows == 1 or has_batch_statistics(self.build(1).model):
                return None
            rows = -(-rows // 2)
            while rows > 1 and memory["total"] - memory["activations"] * (1 - rows / at_once) > bound:
                rows = -(-rows // 2)
            total = self.memory(rows)["total"]
        return rows


def estimate_costs(estimate: Estimate, at_once: int) -> dict[str, Any]:
    """Return FLOPs and memory of one rank; without activations, and why, for a model that needs real numbers."""
    recipe, step = estimate.recipe, estimate.build(1)
    try:
        with make_fake(step):
            found: dict[str, Any] = {"flops_of_one": count_flops(step, estimate.shape)}
        found["memory"] = estimate.memory(at_once)
        room = estimate.card or memory_per_process(estimate.world)
        if estimate.card is not None or found["memory"]["total"] > room:
            found["micro_that_fits"] = estimate.rows_that_fit(room, at_once, found["memory"])
    except UniclError:  # model, loss and data do not fit together
        raise
    except Exception as error:  # noqa: BLE001 - any part may ask for numbers, or for columns that only a real batch has
        memory = state_bytes(recipe, estimate.build(1), estimate.world if recipe.parallel.strategy == "fsdp2" else 1)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {
            "memory": memory,
            "memory_method": f"without activations: the model needs a real batch ({reason})",
        }
    return {**found, "memory_method": METHOD.format("bf16" if estimate.half else "float32")}


def format_fact(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{LABELS.get(name, name)} {format_fact(key, item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(format_fact(key, item) for item in value)
    if key in BYTES:
        return byte_size(value)
    if key == "flops_of_one":
        return f"{value / 1e9:,.3g} GFLOP"
    if key == "time_s":
        return f"about {format_duration(value)}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def dry_run(
    recipe: Recipe, run: Path, world: int, *, as_json: bool, card: str | None = None, resolved: bool = False
) -> None:
    """Print the facts as JSON, or as a table, with ``resolved`` below every key of the recipe."""
    found = dry_run_facts(recipe, run, world, None if card is None else parse_bytes(card))
    if as_json:
        print_json(found, 1)
        return
    if resolved:
        sys.stdout.write(dump(recipe) + "\n")
    table = Table(title=f"{escape_control(recipe.name)}: would train", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in found.items():
        if key != "schema" and value is not None:
            table.add_row(LABELS.get(key, key.replace("_", " ")), escape_control(format_fact(key, value)))
    console = Console(markup=False, highlight=False)
    console.print(table)
    if "micro_that_fits" in found:
        room = parse_bytes(card) if card is not None else memory_per_process(found["processes"])
        console.print(f"note: {memory_advice(found, room)}", soft_wrap=True)


def memory_advice(found: Mapping[str, Any], room: float) -> str:
    """Return a sentence on whether a step fits into ``room`` bytes, and what to do if not."""
    needed, rows, local = byte_size(found["memory"]["total"]), found["micro_that_fits"], found["batch_per_process"]
    if rows is None:
        return f"{needed} do not fit into {byte_size(room)}, and fewer rows at once would not help: {LESS}"
    if rows == found["micro"]:
        return f"{needed} fit into {byte_size(room)}: {rows} of {local} rows at once"
    encoded = f"batch.micro=auto would encode about {rows} of {local} rows at once"
    return f"{needed} do not fit into {byte_size(room)}: {encoded}"


def parse_bytes(text: str) -> float:
    """Return the bytes of `24GiB`, `24GB` or `500MiB`; a bare number is GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([GM]i?B?)?", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UniclError(f"--memory {text}: is not an amount of memory", "write it like 24GiB")
    unit = (match[2] or "GiB").lower()
    return float(match[1]) * (1024 if "i" in unit else 1000) ** (3 if unit[0] == "g" else 2)


def memory_per_process(world: int) -> float:
    """Return the bytes of the first GPU, else an equal share of the machine's; infinite if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return (machine_memory() or math.inf) / world
