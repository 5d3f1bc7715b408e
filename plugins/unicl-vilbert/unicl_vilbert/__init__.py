"""ViLBERT: image regions and words in two streams with co-attention. Factories, without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from unicl_cli.api import Part

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(gt=0, le=65536)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


def build_vilbert(  # noqa: PLR0913 - its options are keys of the recipe
    *,
    encoder: Callable[[Part], nn.Module],
    chunks: int,
    regions: Part,
    text: Part,
    width: Count = 1024,
    heads: Count = 8,
    hidden: Count = 1024,
    blocks: Count = 6,
    shared: Count = 1024,
    shared_heads: Count = 8,
    co_attention: bool = True,
    separate_norms: bool = False,
) -> nn.Module:
    """ViLBERT (NeurIPS 2019): `blocks` pairs of co-attention and self-attention over regions and words.

    `width`, `heads`, `hidden` are those of the image stream, `shared` is the width of co-attention. Without
    `co_attention` each stream looks at itself in its place. `separate_norms` normalises a region's feature and its box
    apart before they are added (LXMERT), so that a short training sees places.
    """
    from unicl_bert.bert import Bert

    from unicl_cli.api import UniclError
    from unicl_vilbert.model import Vilbert, build_layers

    words, found = encoder(text), encoder(regions)
    if not isinstance(words, Bert) or not hasattr(found, "distributions"):
        wrong = f"model.text={text.name}" if not isinstance(words, Bert) else f"model.regions={regions.name}"
        raise UniclError(
            f"vilbert: {wrong} does not fit", "use text bert or bert-folder, regions vilbert-regions or vilbert-rcnn"
        )
    if len(words.units) < blocks:
        raise UniclError(f"vilbert: {blocks} blocks need as many text layers, not {len(words.units)}", "lower blocks")
    sizes = {"blocks": blocks, "width": width, "heads": heads, "hidden": hidden}
    layers = build_layers(words, **sizes, shared=(shared, shared_heads), crossed=co_attention)
    return Vilbert(found, words, layers, width=width, shared=shared, separate_norms=separate_norms, chunks=chunks)


def build_loss(
    *,
    mask: Share = 0.15,
    wrong: Share = 0.5,
    words: Weight = 1.0,
    regions: Weight = 1.0,
    align: Weight = 1.0,
    misaligned: bool = False,
) -> nn.Module:
    """Masked words, masked regions and alignment of image and text (ViLBERT, section 3.2).

    `mask` is the share of words and of regions, `wrong` that of neighbours' captions; `words`, `regions`, `align` are
    weights (0, 0, 1 fine-tunes retrieval). `misaligned` predicts words and regions of wrong pairs too, the default of
    the authors' code.
    """
    from unicl_vilbert.losses import VilbertLoss

    return VilbertLoss(mask, wrong, {"words": words, "regions": regions, "align": align}, misaligned=misaligned)


def build_refer(*, image_width: int, moves_pixels: bool, target: Literal["bce", "ce"] = "bce") -> nn.Module:
    """The region that a text refers to: each region right or wrong (bce), or one of them (ce)."""
    from unicl_cli.api import UniclError
    from unicl_vilbert.losses import ReferLoss

    if moves_pixels:
        raise UniclError("vilbert-refer: the augmentation moves pixels, but no boxes", "set data.augment=none")

    return ReferLoss(image_width, target)


def build_answer(*, model_width: Count = 1024, num_classes: int) -> nn.Module:
    """The answer to a question about the image, one of the corpus's classes; `model_width` is the model's `shared`."""
    from unicl_cli.api import UniclError
    from unicl_vilbert.losses import AnswerLoss

    if not num_classes:
        hint = 'prepare questions with their answers, such as --labels "scenes?task=question"'
        raise UniclError("data.train: vilbert-answer learns from labels, and no corpus of the mix has classes", hint)
    return AnswerLoss(model_width, num_classes)
