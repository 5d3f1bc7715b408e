"""Factories of the built-in encoders and losses: signatures without torch, so that checking a recipe is fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from unicl_cli.contracts import ClassColumns, LabelSets, LogitScale, Part, Tuning
from unicl_cli.recipe.schema import Below1, Count, Depth, Positive, Share, Temperature, Weight, Width

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

CnnWidth = Annotated[Count, Field(ge=8, le=8192, multiple_of=8)]
"""Its norms have 8 groups."""
CnnStages = Annotated[Count, Field(le=8)]
"""Each doubles the width."""
Tile = Count | Literal["auto"]
Power = Annotated[float, Field(ge=-10, le=10)]
NO_ARGS: Mapping[str, int | float | bool | str] = MappingProxyType({})
NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})
Terms = Sequence[Literal["image", "text"]]


def _tile_rows(tile: Tile) -> int | None:
    return None if tile == "auto" else tile


def two_tower(
    *,
    encoder: Callable[[Part], nn.Module],
    chunks: int,
    image: Part,
    text: Part | None,
    embed_dim: Width = 512,
    normalize: bool = True,
    logit_scale: LogitScale = LogitScale(),  # noqa: B008 - frozen
    heads: Literal["kind"] | None = None,
) -> nn.Module:
    """An image and a text tower with projections into one space (CLIP; UniCL, CVPR 2022).

    ``heads: kind`` gives images two projections: prompts are compared with one and captions with the other (BioCAP).
    """
    from unicl_cli.model import TwoTower

    pair, two = (encoder(image), None if text is None else encoder(text)), heads is not None
    return TwoTower(*pair, embed_dim=embed_dim, normalize=normalize, logit_scale=logit_scale, chunks=chunks, heads=two)


def timm(
    *,
    model: str,
    pretrained: bool = False,
    drop_path: Below1 = 0.0,
    args: Mapping[str, int | float | bool | str] = NO_ARGS,
    small_stem: bool = False,
    image_size: int,
    stored: Path | None,
) -> nn.Module:
    """Any timm backbone as image tower: ResNet, Swin, FocalNet, ViT, ConvNeXt, …

    ``args`` are options of the backbone, for example ``{patch_size: 2, window_size: 4}``. ``small_stem`` is for
    ResNets on images of about 32 px.
    """
    from unicl_cli.encoders.timm import TimmTower

    fresh = stored is None  # else the weights of a run will replace them: download nothing
    return TimmTower(
        model,
        pretrained=pretrained and fresh,
        drop_path=drop_path,
        image_size=image_size,
        args=args,
        small_stem=small_stem,
    )


def open_clip(
    *,
    arch: str,
    pretrained: bool = True,
    image: Tuning = Tuning(),  # noqa: B008 - frozen
    text: Tuning = Tuning(),  # noqa: B008 - frozen
    learn_scale: bool = True,
    chunks: int,
    image_size: int | None,
    stored: Path | None,
) -> nn.Module:
    """A whole open_clip model with its weights: `open_clip:NAME[/TAG]`, `local-dir:PATH` or `hf-hub:ORG/REPO`.

    It brings its own preprocessing, tokenizer and logit scale. ``image`` and ``text`` take the training options of any
    tower: freeze, lr_scale, layer_decay, lora.
    """
    from unicl_cli.data.tokenizers import open_clip_tokenizer
    from unicl_cli.encoders.open_clip import ImageTower, TextTower, is_dry, load_net, try_towers
    from unicl_cli.model import TwoTower
    from unicl_cli.storage import hub

    source = (
        hub.find_model(arch, weights=pretrained and not is_dry())
        if stored is None
        else hub.find_local(stored, weights=False)
    )
    net = load_net(source, image_size)
    tokenizer = open_clip_tokenizer(source.name, net.config["text_cfg"], source.folder)
    embed_dim = net.config["embed_dim"]
    towers = ImageTower(net, embed_dim), TextTower(net, tokenizer.context_length, tokenizer)
    if not is_dry():
        try_towers(source.name, *towers)
    model = TwoTower(*towers, embed_dim=embed_dim, normalize=True, logit_scale=LogitScale(), chunks=chunks)
    model.carry_scale(net.logit_scale)
    model.logit_scale.requires_grad_(learn_scale)
    towers[0].tuning, towers[1].tuning = image, text
    return model


def cnn(*, width: CnnWidth = 32, stages: CnnStages = 3) -> nn.Module:
    """A small convolutional image tower for images of about 32 px; trains in seconds on a CPU."""
    from unicl_cli.encoders.cnn import Cnn

    return Cnn(width, stages)


def transformer(  # noqa: PLR0913 - its options are keys of the recipe
    *,
    vocab_size: int,
    context_length: int,
    eot_id: int,
    width: Width = 512,
    layers: Depth = 12,
    heads: Width = 8,
    quick_gelu: bool = False,
    norm_eps: Positive = 1e-5,
    prefix: Literal["kind"] | None = None,
) -> nn.Module:
    """CLIP's text tower: a causal Transformer, read at the end-of-text token.

    ``prefix: kind`` begins prompts with a learned token of their own in training, and every text with that of captions
    at test time (Prefix Conditioning, CVPR 2023).
    """
    from unicl_cli.encoders.transformer import TextTransformer

    words = vocab_size + (prefix is not None)
    tower = TextTransformer(
        words, context_length, eot_id, width=width, layers=layers, heads=heads, quick_gelu=quick_gelu, eps=norm_eps
    )
    if prefix is not None:
        tower.traits = replace(tower.traits, prompt_token=vocab_size)
    return tower


def cbow(*, vocab_size: int, pad_id: int, width: Width = 512) -> nn.Module:
    """A bag of words as text tower: the mean of its token embeddings (CLIP, section 2.3)."""
    from unicl_cli.encoders.cbow import Cbow

    return Cbow(vocab_size, pad_id, width)


def linear(*, vocab_size: int, embed_dim: int, bias: bool = False) -> nn.Module:
    """One free vector per class instead of a text tower (UniCL, Table 3); needs `tokenizer: classes`."""
    from unicl_cli.encoders.linear import LabelEmbedding

    return LabelEmbedding(vocab_size, embed_dim, bias=bias)


def unicl(  # noqa: PLR0913 - its options are keys of the recipe
    *,
    label_sets: LabelSets | None,
    shows_captions: bool,
    hides_named: bool,
    class_prompts: Callable[[str], Tensor] | None,
    class_counts: Callable[[], Sequence[int]] | None,
    terms: Terms = ("image", "text"),
    tile: Tile = "auto",
    fold: bool = True,
    own_text: Share = 0.0,
    weights: Mapping[str, Weight] = NO_WEIGHTS,
    class_columns: ClassColumns | None = None,
    logit_adjustment: Power = 0.0,
) -> nn.Module:
    """UniCL: all pairs with equal labels are positives (CVPR 2022, eq. 2, 3).

    ``own_text`` is the share of a caption's target that falls on equal captions, for rows with a label; 0 is the
    paper's target. ``weights`` are those of groups of classes, 1 unless given. ``class_columns`` adds the prompts of
    all classes to the texts of a batch: `{}` for the template "a photo of a {}.", or `{template: …}`.
    ``logit_adjustment`` adds so many times the log of a class's share of the labels to the logits of its prompts.
    """
    from unicl_cli.losses.unicl import UniCL

    loss = UniCL(
        terms,
        _tile_rows(tile),
        fold=fold,
        own_text=own_text if shows_captions else 0.0,  # no other row reads it, and the paper's target costs less
        label_sets=label_sets,
        weights=weights,
        hides_named=hides_named,
    )
    if class_columns is not None and class_prompts is not None:
        loss.add_class_columns(class_prompts(class_columns.template))
    if logit_adjustment and class_counts is not None:
        loss.adjust_logits(class_counts(), logit_adjustment)
    return loss


def clip(*, tile: Tile = "auto", fold: bool = True) -> nn.Module:
    """CLIP: each pair is its own class; labels are ignored."""
    from unicl_cli.losses.clip import Clip

    return Clip(_tile_rows(tile), fold=fold)


def supcon(
    *,
    image_width: int,
    label_sets: LabelSets | None,
    temperature: Temperature = 0.1,
    dim: Width = 128,
    tile: Tile = "auto",
    weights: Mapping[str, Weight] = NO_WEIGHTS,
) -> nn.Module:
    """SupCon on two views of each image (NeurIPS 2020, eq. 2); needs a second stage for a classifier.

    ``weights`` are those of groups of classes, 1 unless given, for rows with several labels.
    """
    from unicl_cli.losses.supcon import SupCon

    return SupCon(image_width, temperature, dim, _tile_rows(tile), label_sets=label_sets, weights=weights)


def ce(*, image_width: int, num_classes: int, label_sets: LabelSets | None, label_smoothing: Below1 = 0.0) -> nn.Module:
    """Cross-entropy of a linear head on the image tower; of each class alone where rows may have several labels."""
    from unicl_cli.losses.classify import CrossEntropy

    return CrossEntropy(image_width, num_classes, label_smoothing, label_sets=label_sets)


def multitask(
    *,
    image_width: int,
    num_classes: int,
    label_sets: LabelSets | None,
    weight: Weight = 1.0,
    tile: Tile = "auto",
    fold: bool = True,
) -> nn.Module:
    """CLIP on rows with captions plus ``weight`` times cross-entropy on rows with labels (UniCL, Table 6)."""
    from unicl_cli.losses.classify import MultiTask

    return MultiTask(image_width, num_classes, weight, _tile_rows(tile), fold=fold, label_sets=label_sets)
