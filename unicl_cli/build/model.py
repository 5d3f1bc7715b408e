"""Recipe to objects: mix, tokenizer, Step, optimizer. Knows every part."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from unicl_cli import registry
from unicl_cli.build import param_groups
from unicl_cli.contracts import ClassName, Part, Tokenizer
from unicl_cli.core.loop import Step
from unicl_cli.core.recompute import recompute_blocks
from unicl_cli.core.switches import apply_switches
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.recipe.schema import Recipe

PLACE = "place"
"""Attribute of a tower: the name of its folder in TOWERS."""
TOWERS = "towers"
"""Folder of a run with what towers need beside recipe and weights, each its own: configurations, tokenizers."""
WHOLE = "model"
"""The folder there of a model that is one part, not nested towers."""


def build_step(
    recipe: Recipe,
    tokenizer: Callable[[], TextTokenizer],
    classes: tuple[ClassName, ...],
    chunks: int,
    trained: Path | None = None,
) -> tuple[Step, Tokenizer | None]:
    """Model and loss with the recipe's seed, and the text tower's tokenizer: the recipe's, else the tower's own.

    ``trained`` is the run whose weights are going to replace these: towers take their files from it and load no others.
    """
    torch.manual_seed(recipe.seed)
    options = recipe.model.part.options
    places = count()

    def encoder(part: Part) -> nn.Module:
        place = f"{next(places)}-{part.name.rpartition('/')[2]}"
        stored = None if trained is None else trained / TOWERS / place
        tower = cast("nn.Module", registry.make("encoders", part, {**context, "stored": lambda: stored}))
        setattr(tower, param_groups.TUNING, part.tuning)
        setattr(tower, PLACE, place)
        return tower

    context: dict[str, Callable[[], Any]] = {
        "encoder": lambda: encoder,
        "chunks": lambda: chunks,
        "classes": lambda: classes,
        "num_classes": lambda: len(classes),
        "embed_dim": lambda: options.get("embed_dim"),
        "image_size": lambda: recipe.data.image_size,
        "vocab_size": lambda: tokenizer().vocab_size,
        "context_length": lambda: tokenizer().context_length,
        "eot_id": lambda: tokenizer().eot_id,
        "pad_id": lambda: tokenizer().pad_id,
        "image_width": lambda: model.image_width,
        "stored": lambda: None if trained is None else trained / TOWERS / WHOLE,
    }
    model = registry.make("encoders", recipe.model.part, context)
    param_groups.name_towers(model, options)
    if recipe.parallel.grad_checkpoint and not recompute_blocks(model):
        raise UniclError("parallel.grad_checkpoint: no tower of this model lists its blocks", "set it to false")
    apply_switches(model, pack_texts=recipe.parallel.pack_texts, channels_last=recipe.parallel.channels_last)
    param_groups.freeze(model)
    loss = cast("nn.Module", registry.make("losses", recipe.loss, context))
    if getattr(model, "text", model) is None:
        return Step(model, loss), None
    own = owned(model, "tokenizer")
    return Step(model, loss), own if own is not None and recipe.model.tokenizer is None else tokenizer()


def owned(model: nn.Module, name: str) -> Any:
    """What the first part of the model that has an attribute ``name`` says; None where none does."""
    return next((getattr(module, name) for module in model.modules() if hasattr(module, name)), None)


def store_towers(step: nn.Module, run: Path) -> None:
    """Each tower that has files of its own (a method ``store``) writes them into the run."""
    for tower in step.modules():
        if hasattr(tower, "store"):
            folder = run / TOWERS / str(getattr(tower, PLACE, WHOLE))
            folder.mkdir(parents=True, exist_ok=True)
            cast("Any", tower).store(folder)


def adapt(recipe: Recipe, step: nn.Module) -> bool:
    """Adapters beside the weights that the model has by now, and what ``optim.groups`` freezes; were adapters added?"""
    torch.manual_seed(recipe.seed)  # however many numbers the weights have taken
    adapted = param_groups.adapt(step)
    param_groups.freeze_groups(recipe.optim.groups, step)
    if not any(parameter.requires_grad for parameter in step.parameters()):
        hint = "let a tower learn: model.image.freeze, model.text.freeze, model.logit_scale.learn, optim.groups"
        raise UniclError("every parameter is frozen: there is nothing to train", hint)
    return adapted


def build_image_tower(part: Part | str, image_size: int) -> nn.Module:
    """An image tower alone, by its name and options, for models that bring their own rest."""
    bound = registry.bind("encoders", part)
    context: dict[str, Callable[[], Any]] = {"image_size": lambda: image_size, "stored": lambda: None}
    return cast("nn.Module", registry.make("encoders", bound, context))
