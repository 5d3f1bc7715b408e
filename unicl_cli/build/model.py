"""Model and loss of a recipe: its towers, their labels, and their files in the run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unicl_cli import binding
from unicl_cli.binding import takes
from unicl_cli.build import param_groups
from unicl_cli.contracts import ClassName, LabelSets, Model, Part
from unicl_cli.core.loop import Step
from unicl_cli.core.machine import free_memory
from unicl_cli.core.memory import limit_modules
from unicl_cli.core.prompt_marks import start_prompts
from unicl_cli.core.prompts import fill_template, load_templates
from unicl_cli.core.recompute import recompute_blocks
from unicl_cli.core.switches import apply_switches
from unicl_cli.core.towers import traits_in
from unicl_cli.data.mix import BOTH
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.data.transforms import build_augment
from unicl_cli.errors import UniclError
from unicl_cli.recipe.schema import Recipe
from unicl_cli.tower_contracts import StoresFiles, Tokenizer

FOLDER = "tower_folder"
"""Attribute that a built tower gets here: the name of its folder in TOWERS."""
TOWERS = "towers"
"""Folder of a run with the files that towers need beside recipe and weights: configurations, tokenizers."""
WHOLE = "model"
"""Its subfolder for a model that is one part without nested towers."""


def build_step(
    recipe: Recipe,
    tokenizer: Callable[[], TextTokenizer],
    classes: tuple[ClassName, ...],
    chunks: int,
    trained: Path | None = None,
    label_sets: LabelSets | None = None,
    *,
    shows_captions: bool = False,
    class_counts: Callable[[], Sequence[int]] | None = None,
) -> tuple[Step, Tokenizer | None]:
    """Build model and loss with the recipe's seed; return them with the tokenizer of the text tower.

    The tokenizer is the tower's own unless it has none or the recipe names one; it is None without a text tower.
    ``trained`` is the run whose weights will replace these: towers take their files from it and load no weights.
    ``label_sets``, ``shows_captions`` and ``class_counts`` are those of the data (`TrainingData.facts`).
    """
    values = context_of(recipe, tokenizer, classes, chunks)
    torch.manual_seed(recipe.seed)
    # a dry run, on the meta device, may describe a model of another machine
    with limit_modules(None if torch.get_default_device().type == "meta" else free_memory()):
        model, context = build_towers(recipe, values, trained)
    param_groups.name_towers(model, recipe.model.part.options)
    if recipe.parallel.grad_checkpoint and not recompute_blocks(model):
        raise UniclError(
            "parallel.grad_checkpoint: no tower of this model lists its blocks", "set parallel.grad_checkpoint=false"
        )
    apply_switches(model, pack_texts=recipe.parallel.pack_texts, channels_last=recipe.parallel.channels_last)
    param_groups.freeze_towers(model)
    own = find_tokenizer(model) if recipe.model.tokenizer is None else None

    def choose_tokenizer() -> Tokenizer:
        return begin_prompts(model, own or tokenizer())

    def tokenize_classes(template: str) -> Tensor:
        texts = [fill_template(load_templates([template])[0], item.names[0]) for item in classes]
        chosen = choose_tokenizer()
        return start_prompts(chosen(texts), chosen)

    context |= {
        "image_width": lambda: cast("Model", model).image_width,
        "token_width": lambda: getattr(model, "token_width", None) or cast("Model", model).image_width,
        "label_sets": lambda: label_sets,
        "shows_captions": lambda: shows_captions,
        "class_prompts": lambda: tokenize_classes,
        "class_counts": lambda: class_counts,
        "vocab_size": lambda: choose_tokenizer().vocab_size,
        "context_length": lambda: choose_tokenizer().context_length,
        "pad_id": lambda: getattr(choose_tokenizer(), "pad_id", 0),
        "start_id": lambda: find_ends(choose_tokenizer())[0],
        "eot_id": lambda: find_ends(choose_tokenizer())[1],
    }
    loss = cast("nn.Module", binding.make("losses", recipe.loss, context))
    check_texts(recipe, model, loss, own)
    if getattr(model, "text", model) is None and not reads_tokens(recipe):
        return Step(model, loss), None
    return Step(model, loss), choose_tokenizer()


def check_texts(recipe: Recipe, model: nn.Module, loss: nn.Module, own: Tokenizer | None) -> None:
    """Raise UniclError for options of texts that the loss, or the text tower's ``own`` tokenizer, cannot serve."""
    name, has_heads = recipe.loss.name, getattr(model, "has_kind_heads", False)
    if recipe.data.text_for_labelled == BOTH and not getattr(loss, "two_texts", False):
        problem = f"data.text_for_labelled=both: the loss '{name}' takes one text per row"
        raise UniclError(problem, "set it to prompt, caption or mixed, or use the loss unicl")
    if has_heads and reads_tokens(recipe):
        problem = f"model.heads: the loss '{name}' reads the tokens of texts itself"
        raise UniclError(problem, "remove model.heads, or use a loss that does not: unicl, clip")
    if has_heads and own is not None and not isinstance(own, TextTokenizer):
        problem = "model.heads: the text tower's own tokenizer does not mark prompts"
        raise UniclError(problem, "set model.tokenizer to corpus, clip or a file, or remove model.heads")


def reads_tokens(recipe: Recipe) -> bool:
    """Return whether the loss reads tokens itself, so that it needs a tokenizer even without a text tower."""
    return takes("losses", recipe.loss.name, "vocab_size")


def find_ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids that begin and end each text; UniclError if the tokenizer does not put both around a text."""
    rows = tokenizer(["", "a"])
    end: int | None = getattr(tokenizer, "eot_id", None)
    if len(rows[:, 0].unique()) > 1 or end is None or not bool((rows[:, 1:] == end).any(1).all()):
        raise UniclError(
            "model.tokenizer: does not put a start and an end token around each text, which the loss needs",
            "use the tokenizer corpus or clip, or a tokenizer.json whose post_processor adds both",
        )
    return int(rows[0, 0]), end


def begin_prompts(model: nn.Module, tokenizer: Tokenizer) -> Tokenizer:
    """Let the tokenizer, which may have served another model, begin and mark prompts as the model learns it; return it.

    A tokenizer from elsewhere stays as it is.
    """
    token = next((traits.prompt_token for traits in traits_in(model) if traits.prompt_token is not None), None)
    if isinstance(tokenizer, TextTokenizer):
        tokenizer.begin_prompts(token)
        tokenizer.marks_prompts = bool(getattr(model, "has_kind_heads", False))
    return tokenizer


def build_towers(
    recipe: Recipe, values: dict[str, Callable[[], Any]], trained: Path | None
) -> tuple[nn.Module, dict[str, Callable[[], Any]]]:
    """Build the model without its loss; return it with what factories may ask for."""
    builder = TowerBuilder(values, trained)
    files = None if trained is None else trained / TOWERS / WHOLE
    context = values | {"encoder": lambda: builder.build, "stored": lambda: files}
    model = cast("nn.Module", binding.make("encoders", recipe.model.part, context))
    if not hasattr(model, "encode_image"):
        name = recipe.model.part.name
        raise UniclError(f"model: '{name}' is a tower, not a whole model", f"set model.image={name}, or model.text")
    return model, context


def context_of(
    recipe: Recipe, tokenizer: Callable[[], TextTokenizer], classes: tuple[ClassName, ...], chunks: int
) -> dict[str, Callable[[], Any]]:
    """Return what factories may ask for by the name of a parameter; the tokenizer is made only when asked for."""
    embed_dim = recipe.model.part.options.get("embed_dim")
    return {
        "chunks": lambda: chunks,
        "hides_named": lambda: recipe.data.caption_labels == "hide",
        "classes": lambda: classes,
        "num_classes": lambda: len(classes),
        "embed_dim": lambda: embed_dim,
        "image_size": lambda: recipe.data.image_size,
        "moves_pixels": lambda: moves_pixels(recipe),
        "vocab_size": lambda: tokenizer().vocab_size,
        "context_length": lambda: tokenizer().context_length,
        "eot_id": lambda: tokenizer().eot_id,
        "pad_id": lambda: tokenizer().pad_id,
    }


def moves_pixels(recipe: Recipe) -> bool:
    """Return True if the augmentation of any corpus moves pixels, so that places in an image (boxes) would be wrong."""
    lists = [recipe.data.augment, *(item.augment for item in recipe.data.train if item.augment is not None)]
    each = [build_augment(one.name, one.model_dump(exclude={"name"})) for entries in lists for one in entries]
    return any(one.crop is not None or one.flip or one.shift or one.rand is not None for one in each)


class TowerBuilder:
    """The ``encoder`` that models build their towers with: numbers the towers, labels each with tuning and folder."""

    def __init__(self, values: dict[str, Callable[[], Any]], trained: Path | None) -> None:
        self.values, self.trained, self.built = values, trained, 0

    def build(self, part: Part) -> nn.Module:
        """Build a tower; its folder is its number (in order of building) and its name."""
        folder = f"{self.built}-{part.name.rpartition('/')[2]}"
        self.built += 1
        stored = None if self.trained is None else self.trained / TOWERS / folder
        context = self.values | {"encoder": lambda: self.build, "stored": lambda: stored}
        tower = cast("nn.Module", binding.make("encoders", part, context))
        param_groups.set_tuning(tower, part.tuning)
        setattr(tower, FOLDER, folder)
        return tower


def find_tokenizer(model: nn.Module) -> Tokenizer | None:
    """Return the tokenizer that a tower of the model brings; None if none does."""
    return next((traits.tokenizer for traits in traits_in(model) if traits.tokenizer is not None), None)


def store_towers(step: nn.Module, run: Path) -> None:
    """Write the files of each tower that has any (a method ``store``) into the run."""
    for tower in step.modules():
        if isinstance(tower, StoresFiles):
            folder = run / TOWERS / str(getattr(tower, FOLDER, WHOLE))
            folder.mkdir(parents=True, exist_ok=True)
            tower.store(folder)


def add_adapters(recipe: Recipe, step: nn.Module) -> bool:
    """Add adapters beside the weights the model has by now, freeze ``optim.groups``; True if adapters were added."""
    torch.manual_seed(recipe.seed)  # independent of how many random numbers the weights took
    adapted = param_groups.adapt_towers(step)
    param_groups.freeze_groups(recipe.optim.groups, step)
    if not any(parameter.requires_grad for parameter in step.parameters()):
        hint = "let a tower learn: model.image.freeze, model.text.freeze, model.logit_scale.learn, optim.groups"
        raise UniclError("model: every parameter is frozen, nothing is left to train", hint)
    return adapted


def build_image_tower(part: Part | str, image_size: int) -> nn.Module:
    """Build an image tower alone, by its name and options, for models that bring everything else."""
    bound = binding.bind("encoders", part)
    context: dict[str, Callable[[], Any]] = {"image_size": lambda: image_size, "stored": lambda: None}
    return cast("nn.Module", binding.make("encoders", bound, context))
