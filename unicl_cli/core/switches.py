"""Which of a step's faster ways at the same numbers are taken: packed texts, channels last, compiled blocks."""

from torch import nn

from unicl_cli.core.recompute import units_of
from unicl_cli.core.towers import change_traits, own_units, traits_of


def switched(model: nn.Module, *, pack_texts: bool, channels_last: bool) -> None:
    """Switches off what is not wanted; each tower knows by itself what pays."""
    for module in model.modules():
        if traits_of(module).packs and not pack_texts:
            change_traits(module, packs=False)
        if traits_of(module).channels_last and not channels_last:
            change_traits(module, channels_last=False)


def compile_units(step: nn.Module) -> int:
    """Compiles each block of the towers at its first call, in place: no name changes. How many are there?

    Blocks of a kind share one compilation, which a whole tower's would not; losses and collectives stay outside. Sizes
    that change with every batch of texts are left open, so that no step compiles again.
    """
    units = units_of(step)
    towers = [module for module in step.modules() if traits_of(module).packs is not None]
    of_texts = {id(unit) for tower in towers for unit in own_units(tower)}
    for unit in units:
        unit.compile(dynamic=True if id(unit) in of_texts else None)
    return len(units)
