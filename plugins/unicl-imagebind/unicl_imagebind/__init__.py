"""Factories of ImageBind's model, towers, loss and evaluator: their options, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from unicl_cli.api import LogitScale, Part, UniclError

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(ge=1, le=1 << 20)]
Chance = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NO_SCALES: Mapping[str, LogitScale] = MappingProxyType({})


def build_model(  # noqa: PLR0913 - its options are keys of the recipe
    *,
    encoder: Callable[[Part], nn.Module],
    chunks: int,
    image: Part,
    text: Part,
    others: dict[str, Part],
    embed_dim: Count = 512,
    logit_scale: LogitScale = LogitScale(),  # noqa: B008 - frozen
    scales: Mapping[str, LogitScale] = NO_SCALES,
    modality_dropout: Chance = 0.0,
) -> nn.Module:
    """An image and a text tower, and a tower of each further modality, in one space (ImageBind, CVPR 2023).

    ``others`` maps a kind of the corpus's media (audio, depth, thermal, imu) to its tower. ``logit_scale`` is that of
    texts; ``scales`` replaces those of the others, which are fixed as published: audio 20, depth 5, thermal 10, imu 5.
    ``modality_dropout`` is the chance that a row hides a modality; it always keeps one.
    """
    from unicl_cli.api import TwoTower
    from unicl_imagebind.model import ImageBind

    if unknown := sorted({"image", "text"} & others.keys()) or sorted(scales.keys() - others.keys()):
        raise UniclError(
            f"model: '{unknown[0]}' is not one of model.others", f"model.others has {', '.join(others) or 'none'}"
        )
    two = TwoTower(
        encoder(image), encoder(text), embed_dim=embed_dim, normalize=True, logit_scale=logit_scale, chunks=chunks
    )
    towers = {name: encoder(part) for name, part in others.items()}
    return ImageBind(two, towers, scales, chunks=chunks, dropout=modality_dropout)


def build_loss() -> nn.Module:
    """InfoNCE of images with texts and with each further modality, in both directions, summed (ImageBind, eq. 1)."""
    from unicl_imagebind.loss import ImageAnchored

    return ImageAnchored()


def build_audio(  # noqa: PLR0913 - its options are keys of the recipe
    *,
    width: Count = 768,
    layers: Count = 12,
    heads: Count = 12,
    patch: Count = 16,
    stride: Count = 10,
    mels: Count = 128,
    frames: Count = 204,
    clips: Count = 1,
    rate: Annotated[int, Field(ge=1000, le=192_000)] = 16_000,
    mean: float = -4.268,
    std: Positive = 9.138,
    drop_path: Chance = 0.0,
) -> nn.Module:
    """A transformer on log-mel spectrograms of WAV, FLAC and OGG files; the defaults are ImageBind's.

    A clip has ``frames`` of 10 ms: the middle of a longer sound, a shorter one with silence behind it. With several
    ``clips``, spread evenly, their features are averaged.
    """
    from unicl_imagebind.readers import SoundReader
    from unicl_imagebind.towers import MediaTower, Patches

    check_heads("audio-transformer", width, heads)
    check_patches("audio-transformer", min(mels, frames), patch)
    stem = Patches((mels, frames), patch, stride, width)
    reader = SoundReader(rate, mels, frames, clips, mean, std)
    return MediaTower(stem, reader, (".wav", ".flac", ".ogg"), layers=layers, heads=heads, drop_path=drop_path)


def build_grey(
    *,
    image_size: int,
    width: Count = 384,
    layers: Count = 12,
    heads: Count = 8,
    patch: Count = 16,
    mean: float = 0.5,
    std: Positive = 0.5,
    drop_path: Chance = 0.0,
) -> nn.Module:
    """A transformer on grey images of 8 or 16 bits: depth (files `*.depth.png`) and thermal (`*.thermal.png`)."""
    from unicl_imagebind.readers import GreyReader
    from unicl_imagebind.towers import MediaTower, Patches

    check_heads("grey-transformer", width, heads)
    check_patches("grey-transformer", image_size, patch)
    stem = Patches((image_size, image_size), patch, patch, width)
    suffixes = (".{name}.png", "_{name}.png")
    return MediaTower(
        stem, GreyReader(image_size, mean, std), suffixes, layers=layers, heads=heads, drop_path=drop_path
    )


def build_motion(
    *,
    width: Count = 512,
    layers: Count = 6,
    heads: Count = 8,
    samples: Count = 2000,
    window: Count = 8,
    drop_path: Chance = 0.0,
    dropout: Chance = 0.0,
) -> nn.Module:
    """A transformer on six channels of motion (NPY, CSV): windows of samples are its tokens; ImageBind's IMU tower."""
    from unicl_imagebind.readers import MotionReader
    from unicl_imagebind.towers import MediaTower, Windows

    check_heads("imu-transformer", width, heads)
    if samples % window:
        raise UniclError(f"imu-transformer: {samples} samples are not cut by windows of {window}", "change window")
    reader, suffixes = MotionReader(samples), (".npy", ".csv")
    stem = Windows(samples, window, width)
    return MediaTower(stem, reader, suffixes, layers=layers, heads=heads, drop_path=drop_path, dropout=dropout)


def check_heads(name: str, width: int, heads: int) -> None:
    """Raise UniclError unless the heads share the width."""
    if width % heads:
        raise UniclError(f"{name}: width {width} is not a multiple of {heads} heads", "change width or heads")


def check_patches(name: str, side: int, patch: int) -> None:
    """Raise UniclError for a patch that is larger than the input."""
    if patch > side:
        raise UniclError(f"{name}: a patch of {patch} is larger than the input of {side}", "lower patch")
