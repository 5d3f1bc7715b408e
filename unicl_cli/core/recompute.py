"""Gradient checkpointing: a tower's blocks are computed again in backward instead of kept, with the same numbers."""

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from unicl_cli.core.towers import own_units

NORM: Any = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]


def recomputable_units(module: nn.Module) -> list[nn.Module]:
    """Return the blocks that any part of ``module`` lists as its ``units``, each once."""
    return list({id(unit): unit for part in module.modules() for unit in own_units(part)}.values())


def recompute_blocks(module: nn.Module) -> int:
    """Let each outermost unit keep only its input until backward; return the number of these units.

    Dropout draws the same numbers again, and BatchNorm adds to its averages once.
    """
    units = recomputable_units(module)
    inner = {id(part) for unit in units for part in unit.modules() if part is not unit}
    outer = [unit for unit in units if id(unit) not in inner]
    for unit in outer:
        unit.forward = _recomputed(unit)
    return len(outer)


def _recomputed(unit: nn.Module) -> Callable[..., Any]:
    forward = unit.forward
    contexts = partial(_contexts, unit) if any(isinstance(m, NORM) for m in unit.modules()) else noop_context_fn

    def run(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **options)

    return run


def _contexts(unit: nn.Module) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    return contextlib.nullcontext(), _freeze_averages(unit)


@contextlib.contextmanager
def _freeze_averages(unit: nn.Module) -> Generator[None]:
    """Keep BatchNorm's running averages and its count during the second forward, which is not a second batch."""
    norms: list[Any] = [m for m in unit.modules() if isinstance(m, NORM) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
