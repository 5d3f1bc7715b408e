"""Batches of annotated images: which ones a step sees, and their tensors, as functions of (seed, draw) alone."""

import random
import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unicl_cli.api import CocoImage, CocoSet, UniclError, rank, seed_of, world_size
from unicl_coco.images import check_size, read_pixels
from unicl_coco.masks import mask_of

ORDER, FLIP = 1, 2
"""Salts of the seeds."""


class Scenes(NamedTuple):
    """One rank's share of one step: b images of any sizes."""

    images: list[Tensor]
    """uint8 (3, H, W) each."""
    targets: list[dict[str, Tensor]]
    """boxes (n, 4) as x1, y1, x2, y2, labels (n,) from 1, and masks uint8 (n, H, W) where they are learned."""
    draws: list[int]
    """step * batch size + position in the global batch."""


class SceneRows(Dataset[tuple[Tensor, dict[str, Tensor], int]]):
    """The training rows of a set: (row, draw) -> image, target, draw. Crowds are left out.

    ``flip`` is the chance that an image is mirrored.
    """

    def __init__(self, data: CocoSet, *, masks: bool, flip: float, seed: int) -> None:
        self.folder, self.images = data.folder, data.images
        self.masks, self.flip, self.seed = masks, flip, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor], int]:  # pyright: ignore
        row, draw = key
        scene = self.images[row]
        image, target = self.read(scene)
        if random.Random(seed_of(self.seed, draw, FLIP)).random() < self.flip:
            image, target = mirror(image, target)
        return image, target, draw

    def read(self, scene: CocoImage) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the image and what a detector learns from it."""
        path = self.folder / scene.file
        image = read_pixels(path)
        check_size(image, scene, path)
        things = [thing for thing in scene.objects if not thing.crowd]
        target = {
            "boxes": torch.tensor([thing.box for thing in things]).reshape(-1, 4),
            "labels": torch.tensor([1 + thing.label for thing in things], dtype=torch.int64),
        }
        if self.masks:
            shown = [mask_of(thing.segmentation, scene.height, scene.width, str(path)) for thing in things]
            blank = np.zeros((0, scene.height, scene.width), np.uint8)
            target["masks"] = torch.from_numpy(np.stack(shown) if shown else blank)
        return image, target


def mirror(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirror an image and its target from left to right."""
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    turned = {**target, "boxes": torch.stack([width - right, top, width - left, bottom], 1)}
    if "masks" in target:
        turned["masks"] = target["masks"].flip(2)
    return image.flip(2), turned


@lru_cache(maxsize=2)
def order_of(rows: int, seed: int, epoch: int) -> list[int]:
    """Return the rows of a pass in its random order; the same on every machine."""
    coin = random.Random(seed_of(seed, epoch, ORDER))
    keys = [coin.random() for _ in range(rows)]
    return sorted(range(rows), key=keys.__getitem__)


def share_of_step(step: int, rows: int, batch: int, seed: int) -> list[tuple[int, int]]:
    """Return (row, draw) of each image of this rank's share of a step; shares are contiguous.

    UniclError unless the processes can share a ``batch`` equally.
    """
    if batch % world_size():
        hint = f"use a multiple of {world_size()}"
        raise UniclError(f"batch {batch} cannot be shared by {world_size()} processes", hint)
    size = batch // world_size()
    first = step * batch + rank() * size
    return [(order_of(rows, seed, draw // rows)[draw % rows], draw) for draw in range(first, first + size)]


def first_scenes(rows: SceneRows, batch: int) -> Scenes:
    """Return this rank's share of the first step."""
    return join_rows([rows[key] for key in share_of_step(0, len(rows.images), batch, rows.seed)])


def join_rows(rows: Sequence[tuple[Tensor, dict[str, Tensor], int]]) -> Scenes:
    """Make a batch of its rows."""
    images, targets, draws = zip(*rows, strict=True)
    return Scenes(list(images), list(targets), list(draws))


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the training: it saves a checkpoint first."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stream_scenes(rows: SceneRows, batch: int, steps: range, workers: int) -> Iterator[tuple[int, Scenes]]:
    """Yield (step, this rank's share of its ``batch`` images) for each of ``steps``."""
    keys = [share_of_step(step, len(rows.images), batch, rows.seed) for step in steps]
    loader: Any = DataLoader(
        rows,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=join_rows,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=ignore_interrupt if workers else None,
    )
    return zip(steps, loader, strict=True)
