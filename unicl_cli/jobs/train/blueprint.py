"""The blueprint of a stage's model: it can be built again with the same weights and another number of rows at once."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from unicl_cli.build.data import TrainingData, build_tokenizer, reader_of
from unicl_cli.build.init import adopted_tokenizer, load_init
from unicl_cli.build.media import check_media, check_rows
from unicl_cli.build.model import add_adapters, build_step
from unicl_cli.contracts import Batch
from unicl_cli.core.dist import rank
from unicl_cli.core.loop import Step
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError, write_note
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.jobs.train.sizes import Sizes, chunk_count
from unicl_cli.recipe.schema import Recipe
from unicl_cli.tower_contracts import Tokenizer


class Built(NamedTuple):
    """A model and its loss on the CPU, the tokenizer of its texts, and what it starts from, in words."""

    step: Step
    tokenizer: Tokenizer | None
    origin: str | None


class Blueprint:
    """A recipe's model on its data.

    ``trained``: the run whose checkpoint will replace all weights; towers take their files from it. ``start``: the
    model whose weights it starts from.
    """

    def __init__(
        self, recipe: Recipe, data: TrainingData, sizes: Sizes, *, trained: Path | None = None, start: str | None = None
    ) -> None:
        self.recipe, self.data, self.sizes, self.trained, self.start = recipe, data, sizes, trained, start
        self.adopted = cache(partial(adopted_tokenizer, recipe, start or (trained and str(trained))))
        self.fit_tokenizer = cache(self.choose_tokenizer)  # once for all builds, and only if needed

    def choose_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer of the run that it starts from or continues, else the recipe's own."""
        return self.adopted() or build_tokenizer(self.recipe, self.data)

    def build(self, rows: int) -> Built:
        """Build the model for ``rows`` encoded at once, load the start weights and add the adapters."""
        chunks = chunk_count(self.sizes.local, rows)
        step, tokenizer = build_step(
            self.recipe,
            self.fit_tokenizer,
            self.data.classes,
            chunks,
            self.trained,
            **self.data.facts,
        )
        check_media(step, self.data, reader_of(self.recipe))
        origin = None if self.start is None else load_init(step, self.recipe, self.start, tokenizer)
        if origin is not None and tokenizer is not None and tokenizer is self.adopted():
            origin += ", with its tokenizer"
        add_adapters(self.recipe, step)
        check_batchnorm(step.train(), chunks)
        return Built(step, tokenizer, origin)

    def first_batch(self, built: Built) -> Batch:
        """Check the rows of the mix once, and load this rank's share of the first batch."""
        warn(check_rows(built.step, self.data))
        return next(stream_batches(self.recipe, self.data, built.tokenizer, built.step, 0, 1, 0))[1]


def warn(warnings: Sequence[str]) -> None:
    """Write warnings, on rank 0."""
    if rank() == 0:
        for warning in warnings:
            write_note(f"warning: {warning}")


def check_batchnorm(step: Step, chunks: int) -> None:
    """Raise UniclError if BatchNorm would see parts of a batch: their statistics are not the batch's."""
    if chunks > 1 and has_batch_statistics(step.model):
        raise UniclError(
            "batch.micro: BatchNorm would get other statistics than those of the whole batch",
            "set batch.micro=auto, or use a backbone without BatchNorm",
        )


def has_batch_statistics(module: nn.Module) -> bool:
    """Return True if there is BatchNorm in training mode; a loss's own sees all rows of a process, a model's chunks."""
    kind: Any = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
    return any(isinstance(m, kind) and m.training for m in module.modules())


def join_batchnorm(step: nn.Module) -> nn.Module:
    """Return the step with BatchNorm over the rows of all GPUs; weights and their names stay."""
    from timm.layers.norm_act import (
        convert_sync_batchnorm,  # torch's own would drop the activation of timm's BatchNormAct
    )

    joined: nn.Module = convert_sync_batchnorm(step)
    return joined
