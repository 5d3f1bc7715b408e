"""Trained models by name: a run, one of its checkpoints, or an open_clip model with its published weights."""

import shutil
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unicl_cli import binding
from unicl_cli.build import lora
from unicl_cli.build.data import TrainingData
from unicl_cli.build.model import TOWERS, add_adapters, build_step, find_tokenizer
from unicl_cli.contracts import ClassName
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.class_groups import label_sets_of
from unicl_cli.core.loop import Step
from unicl_cli.core.prompts import load_templates
from unicl_cli.core.towers import traits_in
from unicl_cli.data.tokenizers import TextTokenizer, load_tokenizer
from unicl_cli.data.transforms import EvalTransform
from unicl_cli.errors import UniclError
from unicl_cli.formats import list_first
from unicl_cli.recipe.layers import RESOLVED
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.documents import Words
from unicl_cli.runs.folder import CLASSES, META, RECIPE, TOKENIZER, find_run, locate_model, weights_file
from unicl_cli.runs.plugins import load_run_recipe
from unicl_cli.storage import hub
from unicl_cli.storage.documents import read_document
from unicl_cli.tower_contracts import Tokenizer


class Loaded(NamedTuple):
    """A trained model in evaluation on its device. ``transform`` turns an encoded image into input of its tower."""

    name: str
    step: Step
    tokenizer: Tokenizer | None
    transform: EvalTransform
    classes: tuple[ClassName, ...]
    templates: tuple[str, ...]
    corpora: tuple[str, ...]


class PublishedScore(nn.Module):
    """The scores of published weights, in place of a loss: by text, with a sigmoid if they have a ``bias`` (SigLIP)."""

    score = "text"

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.activation = "softmax" if bias is None else "sigmoid"
        if bias is not None:
            self.register_buffer("bias", bias.clone(), persistent=False)  # the model saves it already


def load_model(model: str | None, *, device: torch.device | str = "cpu", raw_weights: bool = False) -> Loaded:
    """Load a run, finished or not, one of its checkpoints, or an open_clip model; refuse weights that do not fit.

    The moving average of the weights is used if there is one, unless ``raw_weights``.
    """
    name = locate_model(model)
    loaded = load_published(name) if hub.has_form(name) else load_trained(name, raw_weights=raw_weights)
    broken = checkpoint.find_non_finite(checkpoint.own_tensors(loaded.step))
    if broken:
        message = f"{name}: the weights have diverged (not finite: {list_first(broken, 3)})"
        raise UniclError(message, "use an earlier checkpoint, or train with a lower optim.lr", exit_code=1)
    loaded.step.eval().to(device)
    return loaded


def load_trained(name: str, *, raw_weights: bool) -> Loaded:
    """Load a run or checkpoint that `unicl train` wrote."""
    run, _ = find_run(name)
    recipe = load_run_recipe(run)
    classes, templates = read_classes(run)
    most = read_words(run).most_labels
    sets = None if most is None else label_sets_of(classes, most)
    step, own = build_step(recipe, cache(partial(load_run_tokenizer, run)), classes, 1, run, sets)
    path, weights = read_run_weights(name, raw_weights=raw_weights)
    load_run_weights(step, recipe, weights, str(path))
    corpora = tuple(dict.fromkeys(item.corpus for item in recipe.data.train))
    transform = transform_of(step.model, recipe.data.image_size)
    return Loaded(str(run), step, own, transform, classes, templates, corpora)


def read_run_weights(name: str, *, raw_weights: bool) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights of a run or checkpoint; return their file, too.

    A training that still runs may delete the checkpoint that was chosen: the newest one is then read.
    """
    path = weights_file(name, raw_weights=raw_weights)
    while True:
        try:
            return path, checkpoint.read_tensors(path)
        except UniclError:
            newest = weights_file(name, raw_weights=raw_weights)
            if newest == path:
                raise
            path = newest


def read_words(folder: Path) -> Words:
    """Read ``classes.json``: classes, templates, and how the tokenizer is used."""
    hint = "run the unicl train command of this run again to write it"
    try:
        return read_document(folder / CLASSES, Words, hint)
    except FileNotFoundError as error:
        raise UniclError(f"{folder / CLASSES}: is missing", hint) from error


def read_classes(folder: Path) -> tuple[tuple[ClassName, ...], tuple[str, ...]]:
    """Return the classes and the templates of a run."""
    words = read_words(folder)
    return tuple(ClassName(c.key, tuple(c.names), c.group, c.parent) for c in words.classes), tuple(words.templates)


def load_run_tokenizer(run: Path, context_length: int | None = None) -> TextTokenizer:
    """Load the tokenizer of a run, at its own ``context_length`` unless another is given."""
    words = read_words(run)
    clean = words.clean
    if clean is None:  # an older run
        clean = load_run_recipe(run).model.tokenizer == "clip"
    return load_tokenizer(run / TOKENIZER, context_length or words.context_length, clean=clean)


def load_run_weights(step: Step, recipe: Recipe, tensors: Mapping[str, Tensor], place: str) -> None:
    """Load the weights of a run into its model; merge the adapters of a checkpoint into the weights they adapt."""
    adapted = lora.has_adapters(tensors)
    if adapted:
        add_adapters(recipe, step)
    checkpoint.load_weights(step, tensors, place)
    if adapted:
        lora.merge_adapters(step)


def plain_weights(
    recipe: Recipe, run: Path, data: TrainingData, tokenizer: Tokenizer | None, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a finished run with adapters merged; the same tensors if there are none."""
    if not lora.has_adapters(tensors):
        return dict(tensors)
    step, _ = build_step(recipe, lambda: cast("TextTokenizer", tokenizer), data.classes, 1, run, data.label_sets)
    load_run_weights(step, recipe, tensors, str(run))
    return checkpoint.weights(step)


def load_published(name: str, image_size: int | None = None) -> Loaded:
    """Load an open_clip model with its own preprocessing and tokenizer, and CLIP's 80 prompts.

    ``image_size`` None is its own; at another, positions are interpolated. It has classes only in a folder that
    `unicl mix` wrote.
    """
    model = build_open_clip(name, image_size)
    step = Step(model, PublishedScore(cast("Any", model).text.logit_bias))
    folder = Path(name.partition(":")[2])
    kept = name.startswith("local-dir:") and (folder / META).is_file() and (folder / CLASSES).is_file()
    classes = read_classes(folder)[0] if kept else ()
    return Loaded(name, step, find_tokenizer(model), transform_of(model, None), classes, load_templates("clip80"), ())


def build_open_clip(name: str, image_size: int | None = None) -> nn.Module:
    """Build the encoder `open_clip` with the weights of ``name``, by default at their own image size."""
    context: dict[str, Callable[[], Any]] = {
        "chunks": lambda: 1,
        "image_size": lambda: image_size,
        "stored": lambda: None,
    }
    part = binding.bind("encoders", {"name": "open_clip", "arch": name})
    return cast("nn.Module", binding.make("encoders", part, context))


def transform_of(model: nn.Module, image_size: int | None) -> EvalTransform:
    """Return the model's own preprocessing if it has one, else the evaluation transform at ``image_size``."""
    frame = next((traits.frame for traits in traits_in(model) if traits.frame is not None), None)
    if frame is not None:
        return EvalTransform(frame.size, frame)
    if image_size is None:
        raise ValueError("the model has no frame of its own, and no image_size was given")
    return EvalTransform((image_size, image_size))


def copy_run_files(run: Path, out: Path) -> None:
    """Copy the files of a run other than its weights."""
    for name in (RESOLVED, RECIPE, CLASSES, TOKENIZER):
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    if (run / TOWERS).is_dir():
        shutil.copytree(run / TOWERS, out / TOWERS, dirs_exist_ok=True)


def copy_model(run: Path, out: Path) -> None:
    """Copy what loads the model of a finished run again: its files and its weights."""
    copy_run_files(run, out)
    for name in (META, checkpoint_files.MODEL, checkpoint_files.EMA):
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
