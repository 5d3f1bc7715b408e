"""Speed switches that change no result: packed texts, channels last, compiled blocks."""

import torch
from torch import nn

from unicl_cli.core.recompute import recomputable_units
from unicl_cli.core.towers import change_traits, own_units, traits_of


def apply_switches(model: nn.Module, *, pack_texts: bool, channels_last: bool) -> None:
    """Turn off the switches that the recipe turns off; a tower itself knows which of the others pay."""
    for module in model.modules():
        if traits_of(module).packs and not pack_texts:
            change_traits(module, packs=False)
        if traits_of(module).channels_last and not channels_last:
            change_traits(module, channels_last=False)


def align_conv_weights(step: nn.Module) -> None:
    """Lay out the 4-d weights of towers with channels-last images as these, in place: (O, I, H, W), O outermost.

    Then their gradients have this layout: otherwise autograd copies each one, and DDP warns about 1 x 1 kernels. Values
    do not change. Not for FSDP2, which takes contiguous weights only.
    """
    towers = [module for module in step.modules() if traits_of(module).channels_last]
    for weight in {id(w): w for tower in towers for w in tower.parameters() if w.ndim == 4}.values():
        _, inside, height, width = weight.shape
        strides = (inside * height * width, 1, width * inside, inside)  # `.to(channels_last)` skips 1 x 1 kernels
        weight.data = torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device).copy_(weight)


def compile_units(step: nn.Module) -> int:
    """Let each block of the towers compile at its first call, in place; return the number of blocks.

    No name changes. Blocks of one kind share one compilation, which whole towers would not; losses and collectives stay
    outside. Sizes that change with every batch of texts are left open, so that no step compiles again.
    """
    units = recomputable_units(step)
    towers = [module for module in step.modules() if traits_of(module).packs is not None]
    of_texts = {id(unit) for tower in towers for unit in own_units(tower)}
    for unit in units:
        unit.compile(dynamic=True if id(unit) in of_texts else None)
    return len(units)
