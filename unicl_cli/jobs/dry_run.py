"""`unicl train --dry-run`: what a recipe comes to, without a step of training."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from unicl_cli.build import build_data, build_step, build_tokenizer, check_learnable, total_steps
from unicl_cli.core.launch import is_worker, processes
from unicl_cli.recipe import Recipe, check_shares, dump


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def facts(recipe: Recipe, run: Path, devices: str) -> dict[str, Any]:
    """Everything that is known before the first step; the model is built on no device at all."""
    world = int(os.environ["WORLD_SIZE"]) if is_worker() else processes(devices)[0]
    check_shares(recipe, world)
    data = build_data(recipe)
    check_learnable(recipe, data)
    tokenizer = build_tokenizer(recipe, data) if recipe.model.part.options.get("text") is not None else None
    with torch.device("meta"):
        step, _ = build_step(recipe, lambda: tokenizer or build_tokenizer(recipe, data), data.classes, 1)
    steps = total_steps(recipe, data)
    towers = {name: parameters(child) for name, child in step.model.named_children()}
    whole = parameters(step)
    return {
        "schema": "unicl/dry-run/1",
        "run": str(run),
        "processes": world,
        "batch": recipe.batch.size,
        "batch_per_process": recipe.batch.size // world,
        "steps": steps,
        "samples": steps * recipe.batch.size,
        "rows": {
            kind: sum(s.size for s in data.mix.strands if s.kind == kind) for kind in {s.kind for s in data.mix.strands}
        },
        "classes": len(data.classes),
        "vocabulary": None if tokenizer is None else tokenizer.vocab_size,
        "context_length": None if tokenizer is None else tokenizer.context_length,
        "parameters": whole,
        "parameters_of": {**towers, "loss": parameters(step.loss)},
        "checkpoint_bytes": 4 * whole + 8 * sum(p.numel() for p in step.parameters() if p.requires_grad),
    }


def dry_run(recipe: Recipe, run: Path, devices: str, *, as_json: bool) -> None:
    """Facts as a table or JSON; with a table the resolved recipe follows."""
    found = facts(recipe, run, devices)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    table = Table(title=f"{recipe.name}: would train", show_header=False)
    for key, value in found.items():
        if key != "schema":
            shown = ", ".join(f"{k} {v:,}" for k, v in value.items()) if isinstance(value, dict) else value
            table.add_row(key.replace("_", " "), f"{shown:,}" if isinstance(shown, int) else str(shown))
    console = Console()
    console.print(table)
    console.print(dump(recipe), markup=False, highlight=False)
