"""The factory of caption prediction: its options, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import nn

Width = Annotated[int, Field(gt=0, le=65536)]
Depth = Annotated[int, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Prior = Annotated[float, Field(ge=0, le=1)]


def build_captioner(  # noqa: PLR0913 - its options are keys of the recipe
    *,
    token_width: int,
    vocab_size: int,
    context_length: int,
    start_id: int,
    eot_id: int,
    chunks: int,
    width: Width = 512,
    layers: Depth = 12,
    heads: Width = 8,
    length: Literal["sum", "mean"] = "sum",
    drop_image: Share = 0.0,
    prior: Prior = 0.0,
    many_prompts: bool = False,
) -> nn.Module:
    """Caption prediction: a text word by word from its image (CLIP, section 2.3); needs no text tower.

    ``width``, ``layers`` and ``heads`` are those of the decoder. A class scores the ``length`` sum or mean of the
    log-probabilities of its prompt, less ``prior`` times those without an image; for that, training hides the image of
    a share ``drop_image`` of the rows. ``many_prompts`` allows several templates for more than 100 classes.
    """
    from unicl_captioner.decoder import Decoder
    from unicl_captioner.loss import Captioner

    decoder = Decoder(vocab_size, context_length, token_width, width=width, layers=layers, heads=heads)
    return Captioner(
        decoder,
        (start_id, eot_id),
        chunks=chunks,
        length=length,
        drop_image=drop_image,
        prior=prior,
        many_prompts=many_prompts,
    )
