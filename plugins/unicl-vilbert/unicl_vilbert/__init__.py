"""ViLBERT: image regions and words in two streams with co-attention. Factories, without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from unicl_cli.api import Part

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Count = Annotated[int, Field(gt=0, le=65536)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


def build_bert(
    *,
    vocab_size: int,
    context_length: int,
    pad_id: int,
    eot_id: int,
    width: Count = 768,
    layers: Count = 12,
    heads: Count = 12,
    hidden: Count = 3072,
) -> nn.Module:
    """A text stream in the form of BERT, from random weights; the sizes are BERT-base's. It has no dropout."""
    from unicl_vilbert.bert import Bert, Size, Special

    size = Size(vocab_size + 1, width, layers, heads, hidden, context_length)
    return Bert(size, Special(pad_id, eot_id, vocab_size))


def build_bert_folder(*, folder: str, length: Count = 36, stored: Path | None) -> nn.Module:
    """A text stream with weights, sizes and tokenizer from a folder: BERT's, or one that `unicl vilbert text` wrote."""
    from pathlib import Path

    from unicl_vilbert.bert import StoredBert, load_bert

    model = StoredBert(Path(folder).expanduser() if stored is None else stored, length)
    if stored is None and not model.bias.is_meta:
        load_bert(model, Path(folder).expanduser())
    return model


def build_regions(
    *,
    model: str,
    boxes: Literal["grid", "media"] = "grid",
    most: Count = 36,
    image_size: int,
    moves_pixels: bool,
    stored: Path | None,
) -> nn.Module:
    """Regions that a trained run sees, the folder `model`: the cells of its image tower's grid, or boxes of the corpus.

    Their class distribution is the run's zero-shot answer to the region cut out. Boxes come from the row's media
    `boxes`, at most `most` in an image.
    """
    from pathlib import Path

    from unicl_vilbert.regions import RunRegions

    run = Path(model).expanduser() if stored is None else stored
    return RunRegions(run, boxes, most, image_size=image_size, moves=moves_pixels)


def build_rcnn(*, weights: str | None = None, classes: Count = 91, most: Count = 36, stored: Path | None) -> nn.Module:
    """Regions that torchvision's Faster R-CNN (`fasterrcnn_resnet50_fpn_v2`) detects, and its class distribution.

    `weights` is a file of its state_dict, `classes` their number with background.
    """
    from pathlib import Path

    from unicl_vilbert.regions import RcnnRegions

    file = None if weights is None else Path(weights).expanduser()
    return RcnnRegions(file if stored is None else stored / "detector.pt", classes, most)


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
) -> nn.Module:
    """ViLBERT (NeurIPS 2019): `blocks` pairs of co-attention and self-attention over regions and words.

    `width`, `heads`, `hidden` are those of the image stream, `shared` is the width of co-attention. Without
    `co_attention` each stream looks at itself in its place.
    """
    from unicl_cli.api import UniclError
    from unicl_vilbert.bert import Bert
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
    return Vilbert(found, words, layers, width=width, shared=shared, chunks=chunks)


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
    from unicl_vilbert.losses import AnswerLoss

    return AnswerLoss(model_width, num_classes)
