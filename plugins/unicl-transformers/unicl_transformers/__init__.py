"""The factory of the text tower: its options, no torch."""

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

    `pretrained: false` takes configuration and tokenizer alone. `pooling` makes one vector of a text's states: their
    mean, the first (cls), the one at the end-of-text token, the last, or what the model itself offers (pooler, the
    default of CLIP and SigLIP; of others: mean). `layers` keeps the first ones, `length` is in tokens.
    """
    from unicl_transformers.tower import TransformersTower, load

    parts = load(model, pretrained=pretrained, layers=layers, dropout=dropout, stored=stored)
    return TransformersTower(parts, model, pooling, length)
