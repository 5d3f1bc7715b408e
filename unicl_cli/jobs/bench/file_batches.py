"""Generated image files as batches: our transform and our loader on them, as several benchmarks measure them."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from unicl_cli.contracts import Batch
from unicl_cli.core.sampler import Mixture, Stream
from unicl_cli.data.corpus import RowTable
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import ClassPlace, Draws, MixedCorpora, Strand, TextChoice
from unicl_cli.data.transforms import TrainTransform, build_augment
from unicl_cli.jobs.bench.jpegs import FileTable
from unicl_cli.jobs.bench.model_pair import clip_bpe
from unicl_cli.jobs.train.batches import move_ahead

OURS = "unicl"
CPU = torch.device("cpu")
SIZE, FILES = 224, 64
CROP = (0.9, 1.0)
"""open_clip's default crop. Its output is normalised floats; ours is uint8, normalised on the device."""


def open_rgb(data: bytes) -> Image.Image:
    """Open an image as open_clip's loaders do ("pilrgb")."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def file_facts(files: Collection[bytes]) -> dict[str, Any]:
    return {"mean_bytes": round(sum(map(len, files)) / len(files)), "pixels": "500 x 375", "to": SIZE}


def our_transform(size: int = SIZE, *, decoder: str = "auto", resize: str = "tensor") -> TrainTransform:
    ops = build_augment("none", {"crop": CROP})
    return TrainTransform(size, [ops], 0, decoder=decoder, resize=resize)


def repeat_batches(
    files: tuple[bytes, ...],
    texts: list[str],
    *,
    transform: TrainTransform | None = None,
    workers: int = 0,
    device: torch.device = CPU,
    augment: DeviceAugment | None = None,
) -> Iterator[Batch]:
    """Yield batches of all files on ``device`` without end, through the loader of training."""
    sizes = np.array([len(files)])
    table = cast("RowTable", FileTable(files, texts))
    cropped = transform or our_transform()
    strand = Strand(table, "captions", 1.0, None, sizes, *ClassPlace(np.empty(0, np.int64)), (), (), cropped, 0)
    order = Mixture([Stream(sizes, "bench")], [Fraction(1)], len(files), 0)
    found = batches(
        MixedCorpora([strand], TextChoice("mixed", "first", 0)),
        Draws(order, 0, 10**9, 0, 1),
        clip_bpe(),
        caption_targets="unique",
        extra=None,
        distinct=True,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    return (batch for _, batch in move_ahead(found, device, workers, augment))
