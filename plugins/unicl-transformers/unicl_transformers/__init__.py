"""The factory of the text tower: its options, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Pooling = Literal["mean", "cls", "eos", "last", "pooler"]


def build_transformers(
    *,
    model: str,
    pretrained: bool = True,
    pooling: Pooling | None = None,
    layers: Annotated[int, Field(gt=0)] | None = None,
    length: Annotated[int, Field(gt=2)] = 64,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    stored: Path | None,
) -> nn.Module:
    """A text encoder of transformers with its own tokenizer; `model` is ORG/NAME on the hub or a directory.

    `pretrained: false` loads configuration and tokenizer only. `pooling` picks the vector of a text: the mean of its
    states, the first (cls), the one at the end-of-text token (eos), the last, or the model's own (pooler). The default
    is pooler for CLIP and SigLIP, else mean. `layers` keeps the first layers; `length` is in tokens.
    """
    from unicl_transformers.tower import TransformersTower, load

    parts = load(model, pretrained=pretrained, layers=layers, dropout=dropout, stored=stored)
    return TransformersTower(parts, model, pooling, length)
