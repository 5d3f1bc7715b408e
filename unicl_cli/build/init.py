"""Start weights (`model.init`) from a run or from open_clip; refused if shapes, settings or tokens differ."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unicl_cli import binding
from unicl_cli.build.load import Loaded, load_published, load_run_tokenizer, load_trained
from unicl_cli.core import checkpoint
from unicl_cli.core.loop import Step
from unicl_cli.core.towers import traits_in, traits_of
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.problems import quote_value
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.folder import RESOLVED, TOKENIZER, find_run
from unicl_cli.storage import hub
from unicl_cli.tower_contracts import Tokenizer
from unicl_cli.yaml_lines import leaves

Tensors = Mapping[str, Tensor]

TRAINED_WITH = frozenset(
    (
        *("freeze", "unlock", "lr_scale", "layer_decay", "lora", "drop_path", "learn_scale", "init", "max", "learn"),
        *("pretrained", "arch", "hf_model_name"),
    )
)
"""Options that change how a model is trained or where it comes from, but not what it computes."""
PARTS = ("image", "text", "logit_scale")
"""Parts that can be taken alone; their tensor names begin with these."""
PROJECTION = "proj."


def flat_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested options under dotted names, without those that only training reads."""
    return {key: x for key, x in leaves(dict(options)).items() if not TRAINED_WITH & set(key.split("."))}


class Source(NamedTuple):
    """Model to start from: a finished one, or an earlier stage that is not trained yet, of which shapes are enough."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer | None
    settings: tuple[dict[str, Any], dict[str, Any]]
    """Those that its towers declare, and the options of its recipe's encoders (a published model has none)."""
    is_published: bool
    tokens: str
    """The value of `model.tokenizer` that gives its tokens."""


def load_init(step: Step, recipe: Recipe, name: str, tokenizer: Tokenizer | None) -> str:
    """Load start weights into the model (not the loss) from a run, a checkpoint or open_clip; describe what was taken.

    A run gives all its weights, open_clip each tower that is the same as here; `model.init_parts` takes exactly those
    parts. Raise UniclError if shapes, settings, pixel normalisation or tokens differ: shapes alone do not show them.
    """
    published = hub.has_form(name)
    loaded = load_published(name) if published else load_trained(name, raw_weights=False)
    source = Source(name, loaded.step.model, loaded.tokenizer, source_settings(loaded), published, tokenizer_of(loaded))
    taken, said = choose_weights(step, recipe, source, tokenizer)
    checkpoint.load_weights(step.model, {**checkpoint.own_tensors(step.model), **taken}, name)
    return f"{said} of {name}"


def choose_weights(step: Step, recipe: Recipe, source: Source, tokenizer: Tokenizer | None) -> tuple[Tensors, str]:
    """Return the tensors that the model takes from ``source``, and a description; raise UniclError as `load_init`."""
    mine, theirs, name = checkpoint.own_tensors(step.model), checkpoint.own_tensors(source.model), source.name
    asked = recipe.model.init_parts
    if shapes_of(mine) == shapes_of(theirs) and asked is None:
        taken, said = theirs, "all weights" if source.is_published else "all"
    elif source.is_published:
        taken, said = take_towers(step, source.model, asked, name)
    elif asked is None:
        hint = "use the model it was trained with, or take parts of it: model.init_parts=[image]"
        raise UniclError(
            f"model.init: {name} is a different model: {first_difference(mine, theirs)}",
            hint if same_tokens(tokenizer, source.tokenizer) else f"set model.tokenizer={source.tokens}; or {hint}",
        )
    else:
        taken, said = take_parts(mine, theirs, asked, name)
    parts = {part for part in PARTS if any(belongs_to(key, part) for key in taken)}
    check_compatible(step, recipe, source, parts, tokenizer)
    return taken, said


def adopts_tokenizer(recipe: Recipe) -> bool:
    """Return True unless the recipe names a tokenizer (a file, clip or classes), or takes no text tower."""
    takes_text = recipe.model.init_parts is None or "text" in recipe.model.init_parts
    return recipe.model.tokenizer in (None, "corpus") and takes_text


def adopted_tokenizer(recipe: Recipe, start: str | None) -> TextTokenizer | None:
    """Return the tokenizer of the run that a training starts from, or None where it keeps its own.

    A tokenizer that is fitted on other texts numbers them differently, so that the text tower would start from nothing.
    """
    if start is None or hub.has_form(start) or not adopts_tokenizer(recipe):
        return None
    run = find_run(start)[0]
    return load_run_tokenizer(run, recipe.model.context_length) if (run / TOKENIZER).is_file() else None


def shapes_of(tensors: Tensors) -> dict[str, torch.Size]:
    """Return the shape of each tensor."""
    return {key: value.shape for key, value in tensors.items()}


def belongs_to(key: str, part: str) -> bool:
    """Return True if this tensor or option is part of ``part``."""
    return key == part or key.startswith(f"{part}.")


def first_difference(mine: Tensors, theirs: Tensors) -> str:
    """Describe the first tensor that only one model has, or that has another shape."""
    for key in {**mine, **theirs}:
        if key not in theirs:
            return f"it has no {key}"
        if key not in mine:
            return f"this model has no {key}"
        if mine[key].shape != theirs[key].shape:
            return f"{key} is {tuple(theirs[key].shape)} there, {tuple(mine[key].shape)} here"
    raise ValueError("both have the same tensors")


def take_towers(step: Step, source: nn.Module, asked: Sequence[str] | None, name: str) -> tuple[Tensors, str]:
    """Return those of open_clip's weights that this model can take, and a description."""
    from unicl_cli.encoders.carry import transferable_weights  # imports take seconds: only here

    found = transferable_weights(step.model, source)
    towers = [part for part in ("image", "text") if part in found]
    if asked:
        chosen = [part for part in PARTS if part in asked]
    elif len(towers) == 2:
        chosen = [*towers, "logit_scale"]
    else:
        chosen = towers
    missing = [f"{part} " for part in chosen if part not in found]
    if missing or not chosen:
        kind = missing[0] if missing else ""
        raise UniclError(
            f"model.init: no {kind}tower of {name} is the same as in this model",
            "use model.name=open_clip, or towers of the same kind, width and depth (docs/models.md)",
        )
    left = [part for part in ("image", "text") if asked is None and part not in found]
    without = "".join(f" (not the {part} tower, which differs)" for part in left)
    return merged_tensors({part: found[part] for part in chosen}), name_parts(chosen) + without


def take_parts(mine: Tensors, theirs: Tensors, asked: Sequence[str], name: str) -> tuple[Tensors, str]:
    """Return these parts of a run, each whole except for a projection into a joint space of another width."""
    chosen: dict[str, Tensors] = {}
    left: list[str] = []
    for part in asked:
        here, there = ({key: x for key, x in each.items() if belongs_to(key, part)} for each in (mine, theirs))
        if shapes_of(here) != shapes_of(there):
            lead = f"{part}.{PROJECTION}"
            here, there = ({k: x for k, x in each.items() if not k.startswith(lead)} for each in (here, there))
            left.append(part)
        if not here or shapes_of(here) != shapes_of(there):
            reason = first_difference(here, there) if here or there else f"neither model has a part '{part}'"
            raise UniclError(
                f"model.init_parts: the {part} of {name} does not fit: {reason}", "remove it from model.init_parts"
            )
        chosen[part] = there
    without = "".join(f" (not the projection of the {part} tower, which differs)" for part in left)
    return merged_tensors(chosen), name_parts(list(chosen)) + without


def merged_tensors(chosen: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Return the tensors of all parts."""
    return {key: value for found in chosen.values() for key, value in found.items()}


def name_parts(parts: Sequence[str]) -> str:
    """Return parts as words: `image tower and text tower and logit scale`."""
    return " and ".join("logit scale" if part == "logit_scale" else f"{part} tower" for part in parts)


def check_compatible(step: Step, recipe: Recipe, source: Source, taken: set[str], tokenizer: Tokenizer | None) -> None:
    """Compare what shapes do not show: heads and activations, pixel normalisation, the words behind tokens."""
    hint = "start from a model with the same settings, or set model.init_parts to other parts"
    for here, there in zip(recipe_settings(step, recipe), source.settings, strict=True):
        keys = sorted(key for key in {**here, **there} if here and there and concerns_parts(key, taken))
        changed = [key for key in keys if comparable(key, here.get(key)) != comparable(key, there.get(key))]
        if changed:
            changes = ", ".join(
                f"{key} {quote_value(there.get(key))} -> {quote_value(here.get(key))}" for key in changed
            )
            raise UniclError(f"model.init: {source.name} has other settings: {changes}", hint)
    if "image" in taken and not same_pixels(step.model, source.model):
        raise UniclError(f"model.init: {source.name} normalises pixels differently from this model", hint)
    if "text" in taken and not same_tokens(tokenizer, source.tokenizer):
        raise UniclError(
            f"model.init: {source.name} was trained with another tokenizer",
            f"set model.tokenizer={source.tokens}",
        )


def tokenizer_of(source: Loaded) -> str:
    """Return the value of `model.tokenizer` that gives the tokens of a finished model."""
    is_clip = hub.has_form(source.name) or getattr(source.tokenizer, "clean", False)
    return "clip" if is_clip else str(find_run(source.name)[0] / TOKENIZER)


def concerns_parts(key: str, taken: set[str]) -> bool:
    """Return True for a setting of one of these parts: an encoder's option, or a key of open_clip's configuration."""
    first = key.split(".")[0]
    of = {"vision_cfg": "image", "text_cfg": "text"}.get(first, first)
    return (of in taken and not key.endswith(".image_size")) or first == "quick_gelu"


def comparable(key: str, value: Any) -> Any:
    """Return the part of a setting that matters: absent equals off; the tag of a timm name only names weights."""
    return str(value).split(".")[0] if key.endswith(".model") else value or None


def recipe_settings(step: Step, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that towers declare, and the options of the recipe's encoders, both without training's."""
    return declared_settings(step.model), flat_settings(binding.as_plain_data(recipe.model.part.options))


def source_settings(source: Loaded) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same of a finished model; weights from elsewhere have no recipe."""
    if hub.has_form(source.name):
        return declared_settings(source.step.model), {}
    return recipe_settings(source.step, load(str(find_run(source.name)[0] / RESOLVED)))


def declared_settings(model: nn.Module) -> dict[str, Any]:
    """Return the settings of the first tower that declares any (of open_clip: its model's configuration)."""
    return next((flat_settings(traits.settings) for traits in traits_in(model) if traits.settings), {})


def same_pixels(one: nn.Module, other: nn.Module) -> bool:
    """Return True if both normalise pixels alike, or one of them does not say."""
    pairs = [[pixel_numbers(each, name) for each in (one, other)] for name in ("mean", "std")]
    return all(a is None or b is None or torch.allclose(a, b, atol=0.5) for a, b in pairs)


def pixel_numbers(model: nn.Module, name: str) -> Tensor | None:
    """Return the mean or std of the pixels (0 to 255), float (3, 1, 1); None if the model does not say.

    A model without memory has them in the traits of its image tower alone.
    """
    value = getattr(model, f"pixel_{name}", None)
    if value is None or not value.is_meta:
        return None if value is None else value.cpu()
    numbers = getattr(traits_of(cast("nn.Module", model.image)), name)
    return torch.tensor(numbers).view(3, 1, 1) * 255


def same_tokens(one: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Return True for equal vocabularies: equal shapes are not enough, since each run may fit its own."""
    if not isinstance(one, TextTokenizer) or not isinstance(other, TextTokenizer):
        return True
    return one.library.get_vocab() == other.library.get_vocab()
