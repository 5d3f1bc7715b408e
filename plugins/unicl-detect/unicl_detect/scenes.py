"""Batches of annotated images: which ones a step sees, and their tensors, as functions of (seed, draw) alone."""

import random
import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unicl_cli.api import CocoImage, CocoSet, UniclError, decode_pixels, rank, seed_of, world_size
from unicl_detect.masks import mask_of
from unicl_detect.options import DetectSettings

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


def read_pixels(path: Path) -> Tensor:
    """Decode an image to uint8 (3, H, W). UniclError if it cannot be."""
    try:
        return decode_pixels(path.read_bytes()).contiguous()
    except (OSError, ValueError) as error:  # ImageError is a ValueError
        raise UniclError(f"{path}: cannot be read as an image: {error}", "restore it from a copy") from error


class SceneRows(Dataset[tuple[Tensor, dict[str, Tensor], int]]):
    """The training rows of a set: (row, draw) -> image, target, draw. Crowds are left out."""

    def __init__(self, data: CocoSet, settings: DetectSettings) -> None:
        self.folder, self.images = data.folder, data.images
        self.masks, self.flip, self.seed = not settings.boxes_only, settings.flip, settings.seed

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


def check_size(image: Tensor, scene: CocoImage, path: Path) -> None:
    """Raise UniclError unless an image has the size that its annotations are for."""
    if tuple(image.shape[1:]) != (scene.height, scene.width):
        found, told = f"{image.shape[2]} x {image.shape[1]}", f"{scene.width} x {scene.height}"
        raise UniclError(
            f"{path}: is {found} px, but its annotations are for {told}", "use the images they were made on"
        )


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


def share_of_step(step: int, rows: int, settings: DetectSettings) -> list[tuple[int, int]]:
    """Return (row, draw) of each image of this rank's share of a step; shares are contiguous."""
    size = settings.batch // world_size()
    first = step * settings.batch + rank() * size
    draws = range(first, first + size)
    return [(order_of(rows, settings.seed, draw // rows)[draw % rows], draw) for draw in draws]


def join_rows(rows: Sequence[tuple[Tensor, dict[str, Tensor], int]]) -> Scenes:
    """Make a batch of its rows."""
    images, targets, draws = zip(*rows, strict=True)
    return Scenes(list(images), list(targets), list(draws))


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the training: it saves a checkpoint first."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stream_scenes(data: CocoSet, settings: DetectSettings, start: int) -> Iterator[tuple[int, Scenes]]:
    """Yield (step, batch) from step ``start`` to the end."""
    steps = range(start, settings.steps)
    keys = [share_of_step(step, len(data.images), settings) for step in steps]
    workers = settings.workers
    loader: Any = DataLoader(
        SceneRows(data, settings),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=join_rows,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=ignore_interrupt if workers else None,
    )
    return zip(steps, loader, strict=True)
