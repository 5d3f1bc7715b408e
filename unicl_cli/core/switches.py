"""Speed switches that change no result: packed texts, channels last, compiled blocks."""

from typing import Any, cast

from torch import nn

from unicl_cli.core.recompute import units_of

PACKS, CHANNELS_LAST = "packs", "channels_last"
"""Attributes of towers that can pack texts, or take images with channels last."""


def apply_switches(model: nn.Module, *, pack_texts: bool, channels_last: bool) -> None:
    """Turn off the switches that the recipe turns off; a tower itself knows which of the others pay."""
    off = [name for name, on in ((PACKS, pack_texts), (CHANNELS_LAST, channels_last)) if not on]
    for module in model.modules():
        for name in off:
            if hasattr(module, name):
                setattr(module, name, False)


def compile_units(step: nn.Module) -> int:
    """Let each block of the towers compile at its first call, in place; return the number of blocks.

    No name changes. Blocks of one kind share one compilation, which whole towers would not; losses and collectives stay
    outside. Sizes that change with every batch of texts are left open, so that no step compiles again.
    """
    units = units_of(step)
    of_texts = {id(unit) for module in step.modules() if hasattr(module, PACKS) for unit in cast("Any", module).units}
    for unit in units:
        unit.compile(dynamic=True if id(unit) in of_texts else None)
    return len(units)
