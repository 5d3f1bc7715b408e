"""Frozen towers and blocks, and learning-rate factors by tower, by layer and by parameter name."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from unicl_cli.build import lora
from unicl_cli.contracts import Part, Tuning, Unlock
from unicl_cli.core.towers import own_units
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.model import Projected
from unicl_cli.recipe.schema import Group

TUNING = "tuning"
"""Attribute that a built tower gets here: its Tuning."""
KEY = "recipe_key"
"""Attribute that a built tower gets here: its key in the recipe (`model.image`)."""
AFTER = ("proj", "head", "pool")
"""Words in the names of modules between the last block and the joint space."""
PROJECTION = "\0projection"


def towers(model: nn.Module) -> Iterator[tuple[nn.Module, Tuning]]:
    """Yield each tower of a model with its Tuning, outer ones first."""
    return ((module, tuning_of(module)) for module in model.modules() if hasattr(module, TUNING))


def tuning_of(tower: nn.Module) -> Tuning:
    """Return the Tuning that a tower was built with; the default for any other module."""
    return getattr(tower, TUNING, Tuning())


def set_tuning(tower: nn.Module, tuning: Tuning) -> None:
    """Label a tower that was just built."""
    setattr(tower, TUNING, tuning)


def name_towers(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Label each tower with its key in the recipe; ``options`` are those of the recipe's ``model``."""
    keys = dict(keys_of(options, "model"))
    for tower, tuning in towers(model):
        setattr(tower, KEY, keys.get(id(tuning), "model"))


def keys_of(options: Mapping[str, Any], at: str) -> Iterator[tuple[int, str]]:
    """Yield (id of a Tuning, key of its tower).

    Towers with the default may share one Tuning and so one key; no error ever names such a key.
    """
    for name, value in options.items():
        key = f"{at}.{name}"
        if isinstance(value, Part):
            yield id(value.tuning), key
            yield from keys_of(value.options, key)
        elif isinstance(value, Tuning):
            yield id(value), key
        elif isinstance(value, Mapping):
            yield from keys_of(cast("Mapping[str, Any]", value), key)


def recipe_key(tower: nn.Module) -> str:
    """Return the key of a tower in the recipe, or its class name."""
    return str(getattr(tower, KEY, type(tower).__name__))


def freeze_towers(model: nn.Module) -> None:
    """Apply the option ``freeze`` of each tower; ``all`` freezes its projection too."""
    for tower, tuning in list(towers(model)):
        if isinstance(tuning.freeze, Unlock):
            freeze_lower_blocks(tower, tuning)
        elif tuning.freeze:
            tower.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, Projected) and tuning_of(module.trunk).freeze == "all":
            module.requires_grad_(requires_grad=False)


def freeze_lower_blocks(tower: nn.Module, tuning: Tuning) -> None:
    """Freeze everything below the last ``freeze.unlock`` blocks of a tower."""
    count, key = cast("Unlock", tuning.freeze).unlock, recipe_key(tower)
    if tuning.lora is not None:
        raise UniclError(
            f"{key}.lora freezes the tower, but {key}.freeze.unlock trains blocks of it", "remove one of the two"
        )
    layers, top = layers_of(tower)
    if count >= top:
        raise UniclError(
            f"{key}.freeze.unlock: {count} of the {top - 1} blocks of {type(tower).__name__}",
            f"unlock at most {top - 1}, or set {key}.freeze=false to train all",
        )
    for name, parameter in tower.named_parameters():
        if layers[name] < top - count:
            parameter.requires_grad = False


def adapt_towers(model: nn.Module) -> bool:
    """Freeze each tower with ``lora`` and add its adapters; return True if there are any."""
    adapted = [(tower, tuning.lora) for tower, tuning in list(towers(model)) if tuning.lora is not None]
    for tower, options in adapted:
        lora.inject_adapters(tower, options, recipe_key(tower))
    return bool(adapted)


def layers_of(tower: nn.Module) -> tuple[dict[str, int], int]:
    """Return the layer of each parameter and the layer of the projection, which is the highest.

    Layer 0 is everything before the blocks; then each block is one layer. A timm backbone is counted as timm does
    (``group_matcher``), any other tower by its ``units``; what follows the last block belongs to it, as in timm and in
    open_clip's ``lock``. Raise UniclError for a tower without blocks.
    """
    timms = next(((name, each) for name, each in tower.named_modules() if hasattr(each, "group_matcher")), None)
    return layers_by_unit(tower) if timms is None else layers_by_timm(tower, *timms)


def layers_by_timm(tower: nn.Module, name: str, backbone: Any) -> tuple[dict[str, int], int]:
    """Count layers in timm's own groups; our projection takes the place of its classifier."""
    from timm.models._manipulate import group_with_matcher

    inner = [key for key, _ in backbone.named_parameters()]
    named = iter([(key, None) for key in (*inner, PROJECTION)])
    known = cast("dict[str, int]", group_with_matcher(named, backbone.group_matcher(coarse=False), reverse=True))
    start, top = f"{name}." if name else "", known[PROJECTION]
    found = dict.fromkeys((key for key, _ in tower.named_parameters()), top)
    return found | {start + key: known[key] for key in inner}, top


def layers_by_unit(tower: nn.Module) -> tuple[dict[str, int], int]:
    """Count the blocks in order; other parameters belong to the layer after which they are registered."""
    units = own_units(tower)
    inside = {id(p): number for number, unit in enumerate(units, 1) for p in unit.parameters()}
    if not inside:
        key, unlock = recipe_key(tower), isinstance(tuning_of(tower).freeze, Unlock)
        raise UniclError(
            f"{key}.{'freeze.unlock' if unlock else 'layer_decay'}: {type(tower).__name__} has no blocks to count",
            f"use {key}.lr_scale, or {key}.freeze=true",
        )
    ids = {id(unit) for unit in units}
    paths = [name.split(".") for name, module in tower.named_modules() if id(module) in ids]
    around = {".".join(path[:n]) for path in paths for n in range(len(path))}  # names of modules that contain blocks
    top, current = len(units) + 1, 0
    found: dict[str, int] = {}
    for name, parameter in tower.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if id(parameter) in inside:
            current = found[name] = inside[id(parameter)]
        elif owner in around:  # a parameter of a module around the blocks is registered before them
            found[name] = top if "proj" in leaf else 0
        else:
            is_after = current == len(units) and any(word in name for word in AFTER)
            found[name] = top if is_after else current
    return found, top


def rate_factors(model: nn.Module) -> dict[int, float]:
    """Map the id of a parameter to the learning-rate factor of its tower and layer; others have factor 1."""
    found: dict[int, float] = {}
    for tower, tuning in towers(model):
        named = list(tower.named_parameters())
        if tuning.layer_decay == 1 or not any(p.requires_grad for _, p in named):
            found |= {id(p): tuning.lr_scale for _, p in named}
            continue
        layers, top = layers_of(tower)
        found |= {id(p): tuning.lr_scale * tuning.layer_decay ** (top - layers[name]) for name, p in named}
    return found


def match_groups(groups: Sequence[Group], model: nn.Module) -> dict[str, Group]:
    """Map each parameter name to the first of ``optim.groups`` that matches it.

    Raise UniclError for a group that matches no name.
    """
    names = [name for name, _ in model.named_parameters()]
    found: dict[str, Group] = {}
    for number, group in enumerate(groups):
        hits = [name for name in names if fnmatchcase(name, group.match)]
        if not hits:
            nearest = nearest_name(group.match, names)
            raise UniclError(
                f"optim.groups.{number}.match: no parameter matches '{group.match}'{nearest}",
                "use names as in model.safetensors; a * stands for any characters",
            )
        found = {**dict.fromkeys(hits, group), **found}
    return found


def nearest_name(pattern: str, names: Sequence[str]) -> str:
    """Return a did-you-mean with the nearest name or beginning of names."""
    parts = [name.split(".") for name in names]
    stems = dict.fromkeys(".".join(words[:n]) + ".*" for words in parts for n in range(1, len(words)))
    return did_you_mean(pattern, [*stems, *names])


def freeze_groups(groups: Sequence[Group], model: nn.Module) -> None:
    """Freeze the parameters whose group in ``optim.groups`` has ``freeze``."""
    chosen = match_groups(groups, model)
    for name, parameter in model.named_parameters():
        if name in chosen and chosen[name].freeze:
            parameter.requires_grad = False
