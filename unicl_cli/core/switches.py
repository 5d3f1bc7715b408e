"""Which of a step's faster ways at the same numbers are taken: packed texts, channels last, compiled blocks."""

from typing import Any, cast

from torch import nn

from unicl_cli.core.recompute import units_of

PACKS, CHANNELS_LAST = "packs", "channels_last"
"""Attributes of towers that can: texts are packed; images lie with their channels last."""


def apply_switches(model: nn.Module, *, pack_texts: bool, channels_last: bool) -> None:
    """Switches off what is not wanted; each tower knows by itself what pays."""
    unwanted = [name for name, wanted in ((PACKS, pack_texts), (CHANNELS_LAST, channels_last)) if not wanted]
    for module in model.modules():
        for name in unwanted:
            if hasattr(module, name):
                setattr(module, name, False)


def compile_units(step: nn.Module) -> int:
    """Compiles each block of the towers at its first call, in place: no name changes. How many are there?

    Blocks of a kind share one compilation, which a whole tower's would not; losses and collectives stay outside. Sizes
    that change with every batch of texts are left open, so that no step compiles again.
    """
    units = units_of(step)
    of_texts = {id(unit) for module in step.modules() if hasattr(module, PACKS) for unit in cast("Any", module).units}
    for unit in units:
        unit.compile(dynamic=True if id(unit) in of_texts else None)
    return len(units)
