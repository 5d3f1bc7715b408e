"""The check that the stages of a recipe can be built and can follow one another, before the first is trained."""

from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from unicl_cli.build.data import (
    TrainingData,
    build_data,
    build_tokenizer,
    check_learnable,
    check_texts,
)
from unicl_cli.build.init import Source, adopts_tokenizer, choose_weights, recipe_settings
from unicl_cli.build.model import add_adapters, build_step
from unicl_cli.build.negatives import check_negatives
from unicl_cli.core.loop import Step
from unicl_cli.data.tokenizers import TextTokenizer, corpus_tokenizer
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.memory import BatchShape, columns_of_row, fake_batch, make_fake
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stages_of
from unicl_cli.runs.folder import META, TOKENIZER
from unicl_cli.tower_contracts import Tokenizer

FEW_TEXTS = 1000
"""Texts for the tokenizer of an outline, whose vocabulary stands for that of all texts: two stages share it or not."""


class Outline(NamedTuple):
    """A stage's model with shapes but without memory, and the tokenizer of its texts."""

    step: Step
    tokenizer: Tokenizer | None


def check_stages(recipe: Recipe, run: Path) -> None:
    """Raise UniclError, with the number of the stage, for one that cannot be built or cannot follow the one before it.

    A stage that has been trained is left out: the next one meets its real weights.
    """
    before: Source | None = None
    for number, (stage, folder, _) in enumerate(stages_of(recipe, run)):
        if (folder / META).is_file():
            before = None
            continue
        try:
            before = check_stage(stage, folder, before)
        except UniclError as error:
            key = f"stages.{number}: " if recipe.stages else ""
            raise UniclError(f"{key}{error.message}", error.hint) from error


def check_stage(stage: Recipe, folder: Path, before: Source | None) -> Source:
    """Check that a stage can be built and can start from ``before``; return it as the start of the next one."""
    data = build_data(stage)
    check_learnable(stage, data)
    check_negatives(stage, data)
    step, tokenizer = build_outline(stage, data, before)
    check_texts(tokenizer, data)
    if before is not None:
        choose_weights(step, stage, before, tokenizer)
    add_adapters(stage, step)
    try_step(stage, step, tokenizer)
    # once more for the next stage: a finished model has no adapters, and its tensors are not fake
    step, tokenizer = build_outline(stage, data, before)
    settings, tokens = recipe_settings(step, stage), str(folder / TOKENIZER)
    return Source(str(folder), step.model, tokenizer, settings, is_published=False, tokens=tokens)


def try_step(stage: Recipe, step: Step, tokenizer: Tokenizer | None) -> None:
    """Run the loss on two rows without numbers; raise its UniclError if it cannot take the batches of this stage."""
    length = None if tokenizer is None else tokenizer.context_length
    shape = BatchShape(2, stage.data.views, stage.data.image_size, length)
    try:
        columns = columns_of_row(step, shape)
        with make_fake(step), torch.no_grad():
            step.train()(fake_batch(shape, columns))
    except UniclError:
        raise
    except Exception:  # noqa: BLE001 - a part may need real values: then the first batch shows it, as without stages
        return


def build_outline(stage: Recipe, data: TrainingData, before: Source | None) -> Outline:
    """Build the model of a stage as its training will, but without memory or weights."""

    def fit_tokenizer() -> TextTokenizer:
        if before is not None and isinstance(before.tokenizer, TextTokenizer) and adopts_tokenizer(stage):
            return before.tokenizer.cut_at(stage.model.context_length or before.tokenizer.context_length)
        if (stage.model.tokenizer or "corpus") != "corpus":
            return build_tokenizer(stage, data)
        return corpus_tokenizer(islice(data.mix.all_texts(), FEW_TEXTS), stage.model.context_length or 32)

    with torch.device("meta"):
        return Outline(*build_step(stage, cache(fit_tokenizer), data.classes, 1, **data.facts))
