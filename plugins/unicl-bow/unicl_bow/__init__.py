"""The factory of bag-of-words prediction: its options, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import nn

PosWeight = Annotated[float, Field(gt=0, le=50)]
Prior = Annotated[float, Field(ge=0, le=1)]


def build_bow(  # noqa: PLR0913 - its options are keys of the recipe
    *,
    image_width: int,
    vocab_size: int,
    start_id: int,
    eot_id: int,
    pad_id: int,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    pos_weight: PosWeight = 1.0,
    length: Literal["mean", "sum"] = "mean",
    prior: Prior = 0.0,
) -> nn.Module:
    """Prediction of the words of a text from the image, in no order (CLIP, section 2.3); needs no text tower.

    ``activation`` softmax: one distribution over the words, with a target of 1/k on each of the k words of a text.
    sigmoid: each word is a separate yes-or-no question, and ``pos_weight`` weighs the words that are there. A class
    scores the ``length`` mean or sum of the log-probabilities of its words, less ``prior`` times their log-frequency in
    training.
    """
    from unicl_bow.loss import BagOfWords

    specials = (start_id, eot_id, pad_id)
    return BagOfWords(
        image_width, vocab_size, specials, activation=activation, pos_weight=pos_weight, length=length, prior=prior
    )
