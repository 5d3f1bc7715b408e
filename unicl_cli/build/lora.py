"""LoRA with peft: adapters next to the frozen layers of a tower, and their merge into plain weights."""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from unicl_cli.contracts import Lora
from unicl_cli.core.towers import own_units
from unicl_cli.encoders.split_attention import SplitAttention, can_split
from unicl_cli.errors import UniclError, did_you_mean

MARK = ".lora_"
"""Part of the name of every adapter tensor."""
ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding)
"""Layers that ``targets`` may name; auto takes Linear layers only."""


def has_adapters(names: Iterable[str]) -> bool:
    """Return True if any of these tensor names belongs to an adapter."""
    return any(MARK in name for name in names)


def inject_adapters(tower: nn.Module, lora: Lora, key: str) -> None:
    """Freeze the tower and add an adapter, which changes nothing yet, beside each of its targets.

    ``key`` is the tower's key in the recipe. ``targets`` auto are all Linear layers of its blocks, those inside torch's
    attention included: QLoRA (NeurIPS 2023, section 4) found that matching full fine-tuning needs them all. Other
    ``targets`` are the ends of module names.
    """
    if importlib.util.find_spec("peft") is None:
        raise UniclError(f"{key}.lora needs the package peft", "run pip install 'unicl[peft]'")
    from peft import LoraConfig, inject_adapter_in_model

    split_attentions(tower, targets_of(tower, lora.targets, key))
    names = targets_of(tower, lora.targets, key)
    config: Any = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - a factor; peft types it as an integer
        lora_dropout=lora.dropout,
        target_modules="|".join(map(re.escape, names)),
    )
    try:
        inject_adapter_in_model(config, tower)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UniclError(
            f"{key}.lora: peft refuses it: {error}", f"name other modules in {key}.lora.targets"
        ) from error


def split_attentions(tower: nn.Module, names: Sequence[str]) -> None:
    """Replace each of torch's attentions that contains one of these layers by a SplitAttention."""
    for name, module in list(tower.named_modules()):
        if can_split(module) and {*names} & {f"{name}.in_proj", f"{name}.out_proj"}:
            tower.set_submodule(name, SplitAttention(module))  # pyright: ignore[reportArgumentType] - checked above


def targets_of(tower: nn.Module, targets: Sequence[str] | str, key: str) -> list[str]:
    """Return the full names of the layers that get an adapter, at least one for each of ``targets``."""
    blocks = {id(m) for unit in own_units(tower) for m in unit.modules()}
    found = dict(candidates(tower))
    kind = type(tower).__name__
    if targets == "auto":
        names = [name for name, m in found.items() if id(m) in blocks and not isinstance(m, nn.Conv2d | nn.Embedding)]
        if not names:
            raise UniclError(
                f"{key}.lora: {kind} has no Linear layer in its blocks", f"name modules in {key}.lora.targets"
            )
        return names
    chosen: dict[str, None] = {}
    for target in targets:
        hit = [name for name in found if name == target or name.endswith(f".{target}")]
        if not hit:
            ends = sorted({name.rpartition(".")[2] for name in found})
            raise UniclError(
                f"{key}.lora.targets: {kind} has no layer '{target}'{did_you_mean(target, ends)}",
                f"use names such as {', '.join(ends[:12])}"
                if ends
                else f"remove {key}.lora: no layer of this tower takes an adapter",
            )
        chosen |= dict.fromkeys(hit)
    return list(chosen)


def candidates(tower: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Yield (name, layer) for every layer that can have an adapter.

    torch's attention yields the two layers that a SplitAttention would have.
    """
    closed: tuple[str, ...] = ()
    for name, module in tower.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            closed += (f"{name}.",)
            if can_split(module):
                yield from ((f"{name}.{part}", module) for part in ("in_proj", "out_proj"))
        elif isinstance(module, ADAPTABLE) and not name.startswith(closed):
            yield name, module


def merge_adapters(module: nn.Module) -> None:
    """Add every adapter to its layer, in place; names are then those of a model without adapters."""
    if importlib.util.find_spec("peft") is None:
        raise UniclError("a checkpoint with LoRA adapters needs the package peft", "run pip install 'unicl[peft]'")
    from peft.tuners.lora import LoraLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            module.set_submodule(name, layer.get_base_layer())
    for name, attention in list(module.named_modules()):
        if isinstance(attention, SplitAttention):
            module.set_submodule(name, attention.to_torch())
