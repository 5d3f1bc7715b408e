"""Factories of ImageBind's model, towers, loss and evaluator: their options, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, cast

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
    others: dict[str, Part],
    image: Part | None = None,
    text: Part | None = None,
    base: Part | None = None,
    embed_dim: Count = 512,
    logit_scale: LogitScale = LogitScale(),  # noqa: B008 - frozen
    scales: Mapping[str, LogitScale] = NO_SCALES,
    modality_dropout: Chance = 0.0,
) -> nn.Module:
    """An image and a text tower, and a tower of each further modality, in one space (ImageBind, CVPR 2023).

    ``base`` is a whole model of both, such as open_clip, in place of ``image``, ``text``, ``embed_dim`` and
    ``logit_scale``. ``others`` maps a kind of the corpus's media (audio, depth, thermal, imu) to its tower. ``scales``
    replaces their factors, which are fixed as published: audio 20, depth 5, thermal 10, imu 5; any other is learned.
    ``modality_dropout`` is the chance that a row hides a modality; it always keeps one.
    """
    from unicl_cli.api import TwoTower
    from unicl_imagebind.model import ImageBind

    if (image is None) != (base is not None) or (text is None) != (base is not None):
        raise UniclError("model: needs image and text, or base in their place", "set both, or base alone")
    wrong = sorted({"image", "text"} & others.keys()) or sorted(scales.keys() - others.keys())
    if wrong or not others:
        said = f"'{wrong[0]}' is not one of model.others" if wrong else "model.others is empty"
        raise UniclError(f"model: {said}", "name media of the corpus, such as others: {audio: audio-transformer}")
    if image is None or text is None:
        two = encoder(cast("Part", base))
    else:
        towers = encoder(image), encoder(text)
        two = TwoTower(*towers, embed_dim=embed_dim, normalize=True, logit_scale=logit_scale, chunks=chunks)
    built = {name: encoder(part) for name, part in others.items()}
    return ImageBind(two, built, scales, chunks=chunks, dropout=modality_dropout)


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

    stem = Patches((mels, frames), patch, stride, width)
    reader = SoundReader(mels, frames, clips, mean, std)
    return MediaTower(stem, reader, (".wav", ".flac", ".ogg"), layers=layers, heads=heads, drop_path=drop_path)


def build_grey(
    *,
    image_size: int,
    width: Count = 384,
    layers: Count = 12,
    heads: Count = 8,
    patch: Count = 16,
    drop_path: Chance = 0.0,
) -> nn.Module:
    """A transformer on grey images of 8 or 16 bits: depth (files `*.depth.png`) and thermal (`*.thermal.png`)."""
    from unicl_imagebind.readers import GreyReader
    from unicl_imagebind.towers import MediaTower, Patches

    stem, reader = Patches((image_size, image_size), patch, patch, width), GreyReader(image_size)
    suffixes = (".{name}.png", "_{name}.png")
    return MediaTower(stem, reader, suffixes, layers=layers, heads=heads, drop_path=drop_path)


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

    stem, reader = Windows(samples, window, width), MotionReader(samples)
    return MediaTower(stem, reader, (".npy", ".csv"), layers=layers, heads=heads, drop_path=drop_path, dropout=dropout)
