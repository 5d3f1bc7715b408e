"""This rank's batches, on the model's device."""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from unicl_cli.build.data import TrainingData
from unicl_cli.contracts import Batch
from unicl_cli.core.dist import bare, rank, world_size
from unicl_cli.core.host_copy import send
from unicl_cli.core.image_cache import EncodedImages
from unicl_cli.core.loop import Step
from unicl_cli.core.prefetch import move_batches, prefetch
from unicl_cli.data.collate import Extra
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.recipe.schema import Recipe
from unicl_cli.tower_contracts import Tokenizer


def stream_batches(
    recipe: Recipe,
    data: TrainingData,
    tokenizer: Tokenizer | None,
    step: nn.Module,
    start: int,
    steps: int,
    workers: int,
    *,
    offset: int = 0,
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) from ``start`` on, on the model's device; step n takes the samples of n + ``offset``."""
    draws = Draws(data.order, start + offset, steps + offset, rank(), world_size())
    inner = cast("Step", bare(step))
    device = next(inner.parameters()).device
    made = batches(
        data.mix if data.encoded is None else data.mix.without_images(),
        draws,
        cast("TextTokenizer | None", tokenizer),
        caption_targets=recipe.data.caption_targets,
        extra=extra_of(inner),
        distinct=not inner.drops_texts(),
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    moved = move_ahead(made, device, workers, data.device_augment, data.encoded)
    return moved if not offset else ((at - offset, batch) for at, batch in moved)


def extra_of(step: Step) -> Extra:
    """Return the ``extra`` hooks of model and loss."""
    hooks: list[Any] = [part.extra for part in (step.model, step.loss) if hasattr(part, "extra")]
    return Extra(hooks)


def move_ahead(
    made: Iterator[tuple[int, Batch]],
    device: torch.device,
    workers: int,
    augment: DeviceAugment | None,
    encoded: Tensor | None = None,
) -> Iterator[tuple[int, Batch]]:
    """Move batches to the device and finish their images there; to a GPU while the step before runs."""
    if device.type == "cuda" and workers:  # on a CPU a thread would only take the step's cores
        made = prefetch(made)
    return move_batches(made, device, partial(finish_images, augment=augment, encoded=encoded))


def finish_images(batch: Batch, moved: Batch, *, augment: DeviceAugment | None, encoded: Tensor | None) -> Batch:
    """Look up images that are ``encoded`` already; apply the augmentation that the loader has left to the device."""
    if encoded is not None:  # the loader gave the numbers of their rows
        known = send(encoded[batch.images], moved.images.device)
        return moved._replace(images=cast("Any", EncodedImages(known)))
    return moved if augment is None else moved._replace(images=augment(moved.images, batch.draws))
