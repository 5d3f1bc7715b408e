"""Finished models by name: a run, one of its checkpoints, or a model of open_clip with its published weights."""

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unicl_cli import registry
from unicl_cli.build import lora
from unicl_cli.build.data import Data
from unicl_cli.build.model import adapt, build_step, owned
from unicl_cli.contracts import ClassName, Tokenizer
from unicl_cli.core import checkpoint, checkpoint_files, hub
from unicl_cli.core.loop import Step
from unicl_cli.core.prompts import load_templates
from unicl_cli.data.tokenizers import TextTokenizer, load_tokenizer
from unicl_cli.data.transforms import EvalTransform
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.folder import CLASSES, RESOLVED, TOKENIZER, find_run, last_run

DEFAULT = "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
"""Where there is no run: MIT, 151 million parameters."""


class Loaded(NamedTuple):
    """A trained model, in evaluation, on its device. ``transform`` makes of an encoded image what its tower takes."""

    name: str
    step: Step
    tokenizer: Tokenizer | None
    transform: EvalTransform
    classes: tuple[ClassName, ...]
    templates: tuple[str, ...]
    corpora: tuple[str, ...]


class Scoring(nn.Module):
    """How weights from elsewhere score classes: by text, with the sigmoid where they have a ``bias`` (SigLIP)."""

    score = "text"

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.activation = "softmax" if bias is None else "sigmoid"
        if bias is not None:
            self.register_buffer("bias", bias.clone(), persistent=False)  # the model has it already


def named(model: str | None) -> str:
    """The model that is meant: the one named, UNICL_MODEL, the last run, else a published one."""
    return model or os.environ.get("UNICL_MODEL") or last_run() or DEFAULT


def load_model(model: str | None, *, device: torch.device | str = "cpu", raw_weights: bool = False) -> Loaded:
    """A run, finished or not, one of its checkpoints, or a model of open_clip. Weights that do not fit are refused.

    The moving average of the weights is taken where there is one, unless ``raw_weights``.
    """
    name = named(model)
    try:
        loaded = published(name) if hub.has_form(name) else trained(name, raw_weights=raw_weights)
    except UniclError as error:
        if model is None and name == DEFAULT:  # nobody has asked for this one
            raise UniclError(
                f"no --model is named, runs/ has no finished run, and {error.message}",
                "train one (unicl train RECIPE), or give --model RUN, local-dir:PATH or hf-hub:ORG/REPO",
            ) from error
        raise
    loaded.step.eval().to(device)
    return loaded


def trained(name: str, *, raw_weights: bool) -> Loaded:
    """What `unicl train` wrote."""
    run, folder = find_run(name)
    recipe = load(str(run / RESOLVED))
    try:
        names = json.loads((run / CLASSES).read_text(encoding="utf-8"))
        classes = tuple(ClassName(item["key"], tuple(item["names"])) for item in names["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UniclError(
            f"{run / CLASSES}: is missing or damaged: {error}",
            "the unicl train command of this run writes it anew",
        ) from error

    @cache
    def tokenizer() -> TextTokenizer:
        clean = recipe.model.tokenizer == "clip"
        return load_tokenizer(run / TOKENIZER, names["context_length"], clean=clean)

    step, own = build_step(recipe, tokenizer, classes, chunks=1, trained=run)
    averaged = (folder / checkpoint_files.EMA).is_file() and not raw_weights
    weights = folder / (checkpoint_files.EMA if averaged else checkpoint_files.MODEL)
    fill(step, recipe, checkpoint.read_tensors(weights), str(weights))
    corpora = tuple(dict.fromkeys(item.corpus for item in recipe.data.train))
    transform = transform_of(step.model, recipe.data.image_size)
    return Loaded(str(run), step, own, transform, classes, tuple(names["templates"]), corpora)


def fill(step: Step, recipe: Recipe, tensors: Mapping[str, Tensor], place: str) -> None:
    """The weights of a run into its model; the adapters of a checkpoint are added to the weights that they adapt."""
    adapted = lora.in_names(tensors)
    if adapted:
        adapt(recipe, step)
    checkpoint.load_weights(step, tensors, place)
    if adapted:
        lora.merge(step)


def plain_weights(
    recipe: Recipe, run: Path, data: Data, tokenizer: Tokenizer | None, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a run's finished model, which needs no adapters any more: the same where there are none."""
    if not lora.in_names(tensors):
        return dict(tensors)
    step, _ = build_step(recipe, lambda: cast("TextTokenizer", tokenizer), data.classes, chunks=1, trained=run)
    fill(step, recipe, tensors, str(run))
    return checkpoint.weights(step)


def published(name: str) -> Loaded:
    """A model of open_clip as it is: its preprocessing, its tokenizer, CLIP's 80 prompts, no classes of its own."""
    model = open_clip_model(name)
    step = Step(model, Scoring(owned(model, "logit_bias")))
    return Loaded(name, step, owned(model, "tokenizer"), transform_of(model, None), (), load_templates("clip80"), ())


def open_clip_model(name: str) -> nn.Module:
    """The encoder `open_clip` with the weights that ``name`` says, at their own image size."""
    context: dict[str, Callable[[], Any]] = {"chunks": lambda: 1, "image_size": lambda: None, "stored": lambda: None}
    part = registry.bind("encoders", {"name": "open_clip", "arch": name})
    return cast("nn.Module", registry.make("encoders", part, context))


def transform_of(model: nn.Module, image_size: int | None) -> EvalTransform:
    """The model's own preprocessing where it brings one, else the geometry of evaluation at ``image_size``."""
    frame = owned(model, "frame")
    if frame is not None:
        return EvalTransform(frame.size, frame)
    if image_size is None:
        raise ValueError("neither the model nor the caller knows the size of an image")
    return EvalTransform((image_size, image_size))
