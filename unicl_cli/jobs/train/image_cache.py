"""The choice to encode each image of a frozen tower once, before the first step, instead of at each draw."""

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from unicl_cli.build.data import TrainingData, augments_of
from unicl_cli.build.workers import worker_count
from unicl_cli.core.dist import any_rank, gather, rank, world_size
from unicl_cli.core.loop import Step
from unicl_cli.data.loader import load_images
from unicl_cli.data.mix import OnePass
from unicl_cli.data.transforms import Augmentation
from unicl_cli.errors import write_line
from unicl_cli.formats import byte_size
from unicl_cli.inference.progress import progress
from unicl_cli.jobs.train.batches import extra_of
from unicl_cli.jobs.train.pixel_probe import FrozenImages, encode_frozen
from unicl_cli.jobs.train.setup import Parts
from unicl_cli.recipe.schema import Recipe

PAYS = 2
"""Times that an image must come on average: all images are encoded once before the first step."""
MAX_BYTES = 1 << 30
"""Memory limit of the cache in a process."""


def cache_images(parts: Parts, step: nn.Module, accelerator: Any, where: str, each: Callable[[], None]) -> Parts:
    """Encode all images of the mix if their tower is frozen and that pays; every rank calls it.

    The weights must be in place. ``each`` is called before each round. ``where`` begins the line that says the choice.
    """
    frozen = parts.frozen_images
    if parts.recipe.parallel.image_cache == "off" or frozen is None:
        return parts
    count, seen = len(parts.data.mix), parts.sizes.steps * parts.recipe.batch.size
    why = reason_not_to_cache(parts, frozen, count, seen)
    if why is not None:
        line = f"images are encoded at each step, although their tower is frozen: {why}"
    else:
        line = f"images are encoded once: their tower is frozen, and each comes about {seen // count} times"
    if rank() == 0:
        write_line(f"{where}: {line}")
    if why is not None:
        return parts
    rows = parts.micro or parts.sizes.local
    return parts._replace(data=encode_all(parts.recipe, parts.data, step, rows, accelerator, each))


def reason_not_to_cache(parts: Parts, frozen: FrozenImages, count: int, seen: int) -> str | None:
    """Return the reason to encode the images of a frozen tower at each step; None for none. The same on every rank.

    ``count``: the images of the mix; ``seen``: those that the whole training draws.
    """
    size = frozen.row_bytes * count
    reasons = {
        "data.augment changes them from draw to draw": changes_images(parts.recipe),
        "the loss takes several views of each (data.views)": parts.recipe.data.views > 1,
        "a hook `extra` may read them": extra_of(cast("Step", parts.step)).reads_images,
        f"something besides the tower uses them: {frozen.other_use or 'on another process'}": any_rank(
            frozen.other_use is not None
        ),
        f"each comes only about {seen / count:.1f} times": seen < PAYS * count,
        f"features of {count:,} images take {byte_size(size)}, more than {byte_size(MAX_BYTES)}": size > MAX_BYTES,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def changes_images(recipe: Recipe) -> bool:
    """Return True if a row's image differs from draw to draw."""
    return any(ops != Augmentation() for item in recipe.data.train for ops in augments_of(recipe, item))


def encode_all(
    recipe: Recipe,
    data: TrainingData,
    step: nn.Module,
    rows: int,
    accelerator: Any,
    each: Callable[[], None] = lambda: None,
) -> TrainingData:
    """Return the data with what the frozen image tower gives for each row of the mix, on every rank.

    Every batch has the ``rows`` that a step encodes at once, so that a value is rounded as in a step; every rank
    encodes equally often, since FSDP2 gathers weights each time.
    """
    mix, device = data.mix, accelerator.device
    workers = worker_count(recipe, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    places, found, done = OnePass(mix, rows, rank(), world_size()), torch.empty(0), 0
    with progress("images encoded once", len(mix)) as advance:
        for images in load_images(mix, places, workers, pin_memory=device.type == "cuda"):
            each()
            short = rows - len(images)
            whole = torch.cat([images, images[-1:].expand(short, *images.shape[1:])]) if short else images
            outputs = encode_frozen(step, whole, accelerator)
            if outputs is None:
                raise ValueError("the image tower learns")
            part = gather(outputs)[: len(mix) - done]
            if not done:
                found = torch.empty(len(mix), *part.shape[1:], dtype=part.dtype)
            found[done : done + len(part)] = part
            done += len(part)
            advance(len(part))
    return data._replace(encoded=found)
