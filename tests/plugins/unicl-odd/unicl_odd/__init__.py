"""Factories of the odd parts: signatures only, no torch. (A submodule would hide a factory of the same name.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from unicl_cli.api import LogitScale, Part

if TYPE_CHECKING:
    from torch import nn


def build_views(*, image_width: int, temperature: float = 0.5, dim: int = 16) -> nn.Module:
    """Two views of an image against all other views (SimCLR)."""
    from unicl_odd.views import Views

    return Views(image_width, temperature, dim)


def build_profile(*, image_size: int, width: int = 16) -> nn.Module:
    """A tower of a third modality: the brightness of each column of an image."""
    from unicl_odd.many import ProfileTower

    return ProfileTower(image_size, width)


def build_many(
    *,
    encoder: Callable[[Part], nn.Module],
    chunks: int,
    image: Part,
    text: Part,
    others: dict[str, Part],
    embed_dim: int = 16,
    missing: float | None = 0.3,
    logit_scale: LogitScale = LogitScale(),  # noqa: B008 - frozen
) -> nn.Module:
    """A tower and a scale a modality (ImageBind).

    ``missing`` is the chance that a row lacks one of the others, which are drawn from its image; null takes them from
    the corpus's media.
    """
    from unicl_odd.many import Many

    towers = {"image": encoder(image), "text": encoder(text)} | {name: encoder(part) for name, part in others.items()}
    return Many(towers, embed_dim, logit_scale, missing, chunks)


def build_bind() -> nn.Module:
    """Contrast of every modality with images."""
    from unicl_odd.many import Bind

    return Bind()


def build_masked(*, embed_dim: int, vocab_size: int, pad_id: int, chance: float = 0.5) -> nn.Module:
    """A masked word of a text, guessed from the image and the rest of the text."""
    from unicl_odd.masked import Masked

    return Masked(embed_dim, vocab_size, pad_id, chance)


def build_joint(
    *, encoder: Callable[[Part], nn.Module], image: Part, text: Part, pad_id: int, width: int = 16
) -> nn.Module:
    """One output for an image and a text that look at each other (ViLBERT)."""
    from unicl_odd.joint import Joint

    return Joint(encoder(image), encoder(text), pad_id, width)


def build_align() -> nn.Module:
    """Binary classification of image-text pairs; neighbouring rows are each other's negatives."""
    from unicl_odd.joint import Align

    return Align()


def build_letters(*, width: int = 16, length: int = 40) -> nn.Module:
    """A text tower with its own tokenizer."""
    from unicl_odd.letters import Letters

    return Letters(width, length)
