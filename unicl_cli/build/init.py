"""Weights to start from: of a run or of open_clip, taken where they fit, refused where they mean something else."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unicl_cli import registry
from unicl_cli.build.load import Loaded, published, trained
from unicl_cli.build.model import owned
from unicl_cli.contracts import Tokenizer
from unicl_cli.core import checkpoint, hub
from unicl_cli.core.loop import Step
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.problems import show
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.folder import RESOLVED, TOKENIZER, find_run
from unicl_cli.yaml_lines import leaves

Tensors = Mapping[str, Tensor]

TRAINED_WITH = frozenset(
    (
        *("freeze", "unlock", "lr_scale", "layer_decay", "lora", "drop_path", "learn_scale", "init", "max", "learn"),
        *("pretrained", "arch", "hf_model_name"),
    )
)
"""Options that change how a model is trained, or where it is from, not what it computes."""
PARTS = ("image", "text", "logit_scale")
"""What can be taken alone: the beginning of the names of its tensors."""
PROJECTION = "proj."


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options under dotted names, without those that only training reads."""
    return {key: x for key, x in leaves(dict(options)).items() if not TRAINED_WITH & set(key.split("."))}


def load_init(step: Step, recipe: Recipe, name: str, tokenizer: Tokenizer | None) -> str:
    """Starts the model (not the loss) from a run, a checkpoint or a model of open_clip; says what was taken over.

    Of a run all is taken, of other weights each tower that is the same; with `model.init_parts` exactly those parts.
    UniclError for what has other shapes, settings, pixels or tokens than here: shapes alone do not show these.
    """
    source = published(name) if hub.has_form(name) else trained(name, raw_weights=False)
    mine, theirs = checkpoint.own_tensors(step.model), checkpoint.own_tensors(source.step.model)
    wanted = recipe.model.init_parts
    if shapes(mine) == shapes(theirs) and wanted is None:
        taken, said = theirs, "all weights" if hub.has_form(name) else "all"
    elif hub.has_form(name):
        taken, said = of_towers(step, source, wanted, name)
    elif wanted is None:
        raise UniclError(
            f"model.init: {name} is another model: {difference(mine, theirs)}",
            "give the model that it was trained with, or take parts: model.init_parts=[image]",
        )
    else:
        taken, said = of_parts(mine, theirs, wanted, name)
    check_same(step, recipe, source, {part for part in PARTS if any(within(key, part) for key in taken)}, tokenizer)
    checkpoint.load_weights(step.model, {**mine, **taken}, name)
    return f"{said} of {name}"


def shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def within(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.")


def difference(mine: Tensors, theirs: Tensors) -> str:
    """The first tensor that only one of them has, or that has another shape."""
    for key in {**mine, **theirs}:
        if key not in theirs:
            return f"it has no {key}"
        if key not in mine:
            return f"this model has no {key}"
        if mine[key].shape != theirs[key].shape:
            return f"{key} is {tuple(theirs[key].shape)} there, {tuple(mine[key].shape)} here"
    raise ValueError("they are the same")


def of_towers(step: Step, source: Loaded, wanted: Sequence[str] | None, name: str) -> tuple[Tensors, str]:
    """What of open_clip's weights this model can take."""
    from unicl_cli.encoders.carry import carried  # seconds of imports, which only this pays

    found = carried(step.model, source.step.model)
    towers = [part for part in ("image", "text") if part in found]
    usual = [*towers, *(["logit_scale"] if len(towers) == 2 else [])]
    chosen = [part for part in PARTS if part in (wanted or usual)]
    lacking = [part for part in chosen if part not in found]
    if lacking or not chosen:
        raise UniclError(
            f"model.init: no {lacking[0] + ' ' if lacking else ''}tower of {name} is the same as one of this model's",
            "take model.name=open_clip, or towers of the same kind, width and depth (docs/models.md)",
        )
    left = [part for part in ("image", "text") if wanted is None and part not in found]
    return joined({part: found[part] for part in chosen}), listed(chosen) + "".join(
        f" (not the {part} tower, which is another)" for part in left
    )


def of_parts(mine: Tensors, theirs: Tensors, wanted: Sequence[str], name: str) -> tuple[Tensors, str]:
    """These parts of a run, each whole; a projection into a joint space of another width is left."""
    chosen: dict[str, Tensors] = {}
    left: list[str] = []
    for part in wanted:
        here, there = ({key: x for key, x in each.items() if within(key, part)} for each in (mine, theirs))
        if shapes(here) != shapes(there):
            lead = f"{part}.{PROJECTION}"
            here, there = ({k: x for k, x in each.items() if not k.startswith(lead)} for each in (here, there))
            left.append(part)
        if not here or shapes(here) != shapes(there):
            told = difference(here, there) if here or there else f"neither has a part '{part}'"
            raise UniclError(
                f"model.init_parts: the {part} of {name} does not fit: {told}", "leave it out of init_parts"
            )
        chosen[part] = there
    without = "".join(f" (not the {part} tower's projection, which is another)" for part in left)
    return joined(chosen), listed(list(chosen)) + without


def joined(chosen: Mapping[str, Tensors]) -> dict[str, Tensor]:
    return {key: value for found in chosen.values() for key, value in found.items()}


def listed(parts: Sequence[str]) -> str:
    """`image tower and text tower and logit scale`."""
    return " and ".join("logit scale" if part == "logit_scale" else f"{part} tower" for part in parts)


def check_same(step: Step, recipe: Recipe, source: Loaded, taken: set[str], tokenizer: Tokenizer | None) -> None:
    """What shapes do not show: heads and activations, the numbers that normalise pixels, the words behind tokens."""
    hint = "start from a model with the same settings, or take other parts of it: model.init_parts"
    for here, there in zip(settings(step, recipe), settings_of(source), strict=True):
        keys = sorted(key for key in {**here, **there} if here and there and concerns(key, taken))
        changed = [key for key in keys if plainly(key, here.get(key)) != plainly(key, there.get(key))]
        if changed:
            told = ", ".join(f"{key} {show(there.get(key))} -> {show(here.get(key))}" for key in changed)
            raise UniclError(f"model.init: {source.name} has other settings: {told}", hint)
    if "image" in taken and not same_pixels(step.model, source.step.model):
        raise UniclError(f"model.init: {source.name} normalises pixels with other numbers than this model", hint)
    if "text" in taken and not same_tokens(tokenizer, source.tokenizer):
        file = find_run(source.name)[0] / TOKENIZER if not hub.has_form(source.name) else "clip"
        raise UniclError(
            f"model.init: {source.name} has learned other tokens than this recipe's", f"set model.tokenizer={file}"
        )


def concerns(key: str, taken: set[str]) -> bool:
    """Is it a setting of one of these parts: an option of an encoder, or a key of open_clip's configuration?"""
    first = key.split(".")[0]
    of = {"vision_cfg": "image", "text_cfg": "text"}.get(first, first)
    return (of in taken and not key.endswith(".image_size")) or first == "quick_gelu"


def plainly(key: str, value: Any) -> Any:
    """A setting as far as it matters: absent is off; what follows timm's name says where weights are from."""
    return str(value).split(".")[0] if key.endswith(".model") else value or None


def settings(step: Step, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of an open_clip model, and of a recipe the options of its encoders; without training's."""
    config = owned(step.model, "config")
    return {} if config is None else flat(config["model_cfg"]), flat(registry.plain(recipe.model.part.options))


def settings_of(source: Loaded) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of a finished model; weights from elsewhere have no recipe."""
    if hub.has_form(source.name):
        return flat(owned(source.step.model, "config")["model_cfg"]), {}
    return settings(source.step, load(str(find_run(source.name)[0] / RESOLVED)))


def same_pixels(one: nn.Module, other: nn.Module) -> bool:
    """Do both normalise pixels alike, as far as they say?"""
    pairs = [[getattr(each, name, None) for each in (one, other)] for name in ("pixel_mean", "pixel_std")]
    return all(a is None or b is None or torch.allclose(a.cpu(), b.cpu(), atol=0.5) for a, b in pairs)


def same_tokens(one: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Equal shapes are not enough where each run has fitted its own vocabulary."""
    if not isinstance(one, TextTokenizer) or not isinstance(other, TextTokenizer):
        return True
    return one.library.get_vocab() == other.library.get_vocab()
