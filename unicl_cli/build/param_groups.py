"""What of a model learns, and how fast: frozen towers and blocks, rates by tower, by layer and by name."""

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
"""Attribute of a tower: the Tuning that its recipe gives it."""
KEY = "recipe_key"
"""Attribute of a tower: where the recipe speaks of it (`model.image`)."""
AFTER = ("proj", "head", "pool")
"""Words in the names of what stands between the last block and the joint space."""
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
    """Tells each tower its key in the recipe, whose options of ``model`` these are."""
    keys = dict(keys_of(options, "model"))
    for tower, tuning in towers(model):
        setattr(tower, KEY, keys.get(id(tuning), "model"))


def keys_of(options: Mapping[str, Any], at: str) -> Iterator[tuple[int, str]]:
    """(id of a Tuning, key of its tower); those that say nothing may be one object, and are never complained of."""
    for name, value in options.items():
        key = f"{at}.{name}"
        if isinstance(value, Part):
            yield id(value.tuning), key
            yield from keys_of(value.options, key)
        elif isinstance(value, Tuning):
            yield id(value), key
        elif isinstance(value, Mapping):
            yield from keys_of(cast("Mapping[str, Any]", value), key)


def key_of(tower: nn.Module) -> str:
    return str(getattr(tower, KEY, type(tower).__name__))


def freeze_towers(model: nn.Module) -> None:
    """What the towers' ``freeze`` says; projections go with a tower that is frozen as ``all``."""
    for tower, tuning in list(towers(model)):
        if isinstance(tuning.freeze, Unlock):
            freeze_lower_blocks(tower, tuning)
        elif tuning.freeze:
            tower.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, Projected) and tuning_of(module.trunk).freeze == "all":
            module.requires_grad_(requires_grad=False)


def freeze_lower_blocks(tower: nn.Module, tuning: Tuning) -> None:
    """All but the last blocks, as many as ``freeze.unlock`` says."""
    count, key = cast("Unlock", tuning.freeze).unlock, key_of(tower)
    if tuning.lora is not None:
        raise UniclError(
            f"{key}.lora freezes the tower, and {key}.freeze.unlock trains blocks of it", "take one of the two"
        )
    layers, top = layers_of(tower)
    if count >= top:
        raise UniclError(
            f"{key}.freeze.unlock: {count} of {type(tower).__name__}'s {top - 1} blocks",
            f"unlock at most {top - 1}, or set {key}.freeze=false to train all",
        )
    for name, parameter in tower.named_parameters():
        if layers[name] < top - count:
            parameter.requires_grad = False


def add_adapters(model: nn.Module) -> bool:
    """Puts the adapters of ``lora`` into their towers, which are frozen; says whether there are any."""
    adapted = [(tower, tuning.lora) for tower, tuning in list(towers(model)) if tuning.lora is not None]
    for tower, wanted in adapted:
        lora.inject_adapters(tower, wanted, key_of(tower))
    return bool(adapted)


def layers_of(tower: nn.Module) -> tuple[dict[str, int], int]:
    """Parameter name -> its layer: 0 before the blocks, then one a block; and the projection's, which is the highest.

    Of a timm backbone as timm counts (``group_matcher``), else by ``units``, the last of which takes what follows it
    along, as in timm and in open_clip's ``lock``. UniclError for a tower without blocks.
    """
    timms = next(((name, each) for name, each in tower.named_modules() if hasattr(each, "group_matcher")), None)
    return layers_by_unit(tower) if timms is None else layers_by_timm(tower, *timms)


def layers_by_timm(tower: nn.Module, name: str, backbone: Any) -> tuple[dict[str, int], int]:
    """timm's own groups, its classifier being where our projection is."""
    from timm.models._manipulate import group_with_matcher

    inner = [key for key, _ in backbone.named_parameters()]
    named = iter([(key, None) for key in (*inner, PROJECTION)])
    known = cast("dict[str, int]", group_with_matcher(named, backbone.group_matcher(coarse=False), reverse=True))
    start, top = f"{name}." if name else "", known[PROJECTION]
    found = dict.fromkeys((key for key, _ in tower.named_parameters()), top)
    return found | {start + key: known[key] for key in inner}, top


def layers_by_unit(tower: nn.Module) -> tuple[dict[str, int], int]:
    """Blocks in their order, the rest by where it is registered."""
    units = own_units(tower)
    inside = {id(p): number for number, unit in enumerate(units, 1) for p in unit.parameters()}
    if not inside:
        key, unlock = key_of(tower), isinstance(tuning_of(tower).freeze, Unlock)
        raise UniclError(
            f"{key}.{'freeze.unlock' if unlock else 'layer_decay'}: {type(tower).__name__} has no blocks to count",
            f"use {key}.lr_scale, or {key}.freeze=true",
        )
    ids = {id(unit) for unit in units}
    ways = [name.split(".") for name, each in tower.named_modules() if id(each) in ids]
    around = {".".join(way[:n]) for way in ways for n in range(len(way))}
    top, now = len(units) + 1, 0
    found: dict[str, int] = {}
    for name, parameter in tower.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if id(parameter) in inside:
            now = found[name] = inside[id(parameter)]
        elif owner in around:  # registered before any block, whatever it is for
            found[name] = top if "proj" in leaf else 0
        else:
            found[name] = top if now == len(units) and any(word in name for word in AFTER) else now
    return found, top


def rate_factors(model: nn.Module) -> dict[int, float]:
    """id of a parameter -> the factor of its tower and its layer on the learning rate (1 where it is not there)."""
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
    """Parameter name -> the first of ``optim.groups`` that matches it. UniclError for one that matches no name."""
    names = [name for name, _ in model.named_parameters()]
    found: dict[str, Group] = {}
    for number, group in enumerate(groups):
        hits = [name for name in names if fnmatchcase(name, group.match)]
        if not hits:
            nearest = nearest_name(group.match, names)
            raise UniclError(
                f"optim.groups.{number}.match: no parameter is called '{group.match}'{nearest}",
                "use names as in model.safetensors; a * stands for any characters",
            )
        found = {**dict.fromkeys(hits, group), **found}
    return found


def nearest_name(pattern: str, names: Sequence[str]) -> str:
    """The nearest name, or beginning of names."""
    parts = [name.split(".") for name in names]
    stems = dict.fromkeys(".".join(words[:n]) + ".*" for words in parts for n in range(1, len(words)))
    return did_you_mean(pattern, [*stems, *names])


def freeze_groups(groups: Sequence[Group], model: nn.Module) -> None:
    """What ``optim.groups`` freezes."""
    chosen = match_groups(groups, model)
    for name, parameter in model.named_parameters():
        if name in chosen and chosen[name].freeze:
            parameter.requires_grad = False
