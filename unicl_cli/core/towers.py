"""The one reader of what towers declare: their traits and their blocks."""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from unicl_cli.tower_contracts import TowerTraits

ATTRIBUTES = (
    *("mean", "std", "frame"),
    *("tokenizer", "pad_id", "context_length", "trim_safe", "drops", "projects"),
)
"""The traits that a tower without ``traits`` may set as attributes of the same names."""


def traits_of(module: nn.Module) -> TowerTraits:
    """Return the ``traits`` of a tower, else those that its attributes give; the defaults for any other module."""
    traits = getattr(module, "traits", None)
    if isinstance(traits, TowerTraits):
        return traits
    return TowerTraits(**{name: getattr(module, name) for name in ATTRIBUTES if hasattr(module, name)})


def traits_in(model: nn.Module) -> Iterator[TowerTraits]:
    """Yield the traits of every module of a model, outer ones first."""
    return map(traits_of, model.modules())


def change_traits(module: nn.Module, **changes: Any) -> None:
    """Replace some traits of a tower."""
    cast("Any", module).traits = dataclasses.replace(traits_of(module), **changes)


def own_units(module: nn.Module) -> list[nn.Module]:
    """Return the blocks that a tower (or a model) lists as its ``units``; none where it has no such attribute."""
    return list(getattr(module, "units", ()))
