"""Pairs of one open_clip model and one of ours with the same weights, and the difference of their results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from unicl_cli.build.model import build_step
from unicl_cli.contracts import LogitScale
from unicl_cli.core.checkpoint import load_weights, own_tensors
from unicl_cli.core.loop import Step
from unicl_cli.data.tokenizers import TextTokenizer, clip_tokenizer
from unicl_cli.encoders.carry import transferable_weights
from unicl_cli.encoders.open_clip import ImageTower, Net, TextTower
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.model import TwoTower
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.schema import Recipe

SEED = 0
CONTEXT = 77


@cache
def clip_bpe() -> TextTokenizer:
    return clip_tokenizer(CONTEXT)


class ModelShape(NamedTuple):
    """``theirs``: open_clip's configuration. ``image``: our image tower; our text tower follows from ``theirs``."""

    theirs: Mapping[str, Any]
    image: Mapping[str, Any]


def vit_shape(width: int, layers: int, *, patch: int, size: int, text: tuple[int, int], embed_dim: int) -> ModelShape:
    """Return the shape of a ViT with heads of 64; ``text`` is (width, layers)."""
    vision = {"image_size": size, "layers": layers, "width": width, "patch_size": patch, "head_width": 64}
    words = {"context_length": CONTEXT, "vocab_size": 49408, "width": text[0], "heads": text[0] // 64}
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": {**words, "layers": text[1]}}
    args = {"embed_dim": width, "depth": layers, "num_heads": width // 64, "patch_size": patch}
    return ModelShape(config, {"name": "timm", "model": "vit_base_patch32_clip_224", "args": args})


def swin_shape() -> ModelShape:
    """Return the shape of UniCL's image tower with CLIP's text tower."""
    name = "swin_tiny_patch4_window7_224"
    vision = {"image_size": 224, "timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "timm_drop_path": 0.0}
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    return ModelShape({"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}, {"name": "timm", "model": name})


SHAPES: Mapping[str, Callable[[], ModelShape]] = MappingProxyType(
    {
        "tiny": lambda: vit_shape(64, 1, patch=32, size=64, text=(64, 1), embed_dim=32),
        "text": lambda: vit_shape(64, 1, patch=32, size=64, text=(512, 4), embed_dim=512),
        "small": lambda: vit_shape(384, 4, patch=32, size=224, text=(384, 4), embed_dim=384),
        "ViT-B-32": lambda: vit_shape(768, 12, patch=32, size=224, text=(512, 12), embed_dim=512),
        "ViT-B-16": lambda: vit_shape(768, 12, patch=16, size=224, text=(512, 12), embed_dim=512),
        "Swin-T": swin_shape,
    }
)


class ModelPair(NamedTuple):
    """``theirs`` takes normalised floats and 77 tokens; ``ours`` takes uint8 and as many tokens as there are.

    ``translator`` holds open_clip's model in the form from which ours can take weights.
    """

    theirs: Any
    step: Step
    recipe: Recipe
    tokenizer: TextTokenizer
    translator: nn.Module

    @property
    def ours(self) -> Any:
        return self.step.model


def shape_of(name: str) -> ModelShape:
    if name not in SHAPES:
        raise UniclError(f"--model {name}: unknown{did_you_mean(name, SHAPES)}", f"use {', '.join(SHAPES)}")
    return SHAPES[name]()


def make_recipe(
    shape: ModelShape, batch: int, *, precision: str, frozen_text: bool, changes: Sequence[str] = ()
) -> Recipe:
    """Return the recipe that trains our model: keys not set here have their defaults; ``changes`` are KEY=VALUE."""
    text = {key: shape.theirs["text_cfg"][key] for key in ("width", "layers", "heads")}
    whole = {
        "data": {"train": [{"corpus": "bench"}], "image_size": shape.theirs["vision_cfg"]["image_size"]},
        "model": {
            "image": dict(shape.image),
            "text": {"name": "transformer", **text, "freeze": frozen_text},
            "embed_dim": shape.theirs["embed_dim"],
            "tokenizer": "clip",
            "context_length": CONTEXT,
        },
        "batch": {"size": batch},
        "steps": 1_000_000,
        "precision": precision,
    }
    return load_text(json.dumps(whole), overrides=changes)


def make_model_pair(
    name: str, device: torch.device, batch: int = 64, *, precision: str = "fp32", frozen_text: bool = False
) -> ModelPair:
    """Make both models in training mode, with open_clip's initialisation; ours looks up frozen texts in its cache."""
    shape = shape_of(name)
    recipe = make_recipe(shape, batch, precision=precision, frozen_text=frozen_text)
    torch.manual_seed(SEED)
    config: Any = deepcopy(dict(shape.theirs))
    theirs: Any = CLIP(**config, output_dict=True)
    tokenizer = clip_bpe()
    step, _ = build_step(recipe, lambda: tokenizer, (), 1)
    pair = ModelPair(theirs.train(), step, recipe, tokenizer, _translator(shape, cast("Any", step.model)))
    weights = {**own_tensors(step.model), **convert_weights(pair, theirs.state_dict())}
    load_weights(step.model, weights, name)
    if frozen_text:
        _freeze_text(pair)
    theirs.to(device)
    step.train().to(device)
    if frozen_text:
        pair.ours.remember_texts()
    return pair


def _freeze_text(pair: ModelPair) -> None:
    """Freeze both text towers, projections included."""
    theirs = pair.theirs
    parts = (theirs.transformer, theirs.token_embedding, theirs.ln_final, theirs.positional_embedding)
    for part in (*parts, theirs.text_projection, pair.ours.text):
        part.requires_grad_(False)  # noqa: FBT003 - torch's own signature


def _translator(shape: ModelShape, ours: Any) -> nn.Module:
    config: Any = deepcopy(dict(shape.theirs))
    whole: Any = CustomTextCLIP(**config)
    traits = ours.image.trunk.traits
    preprocess = {"size": shape.theirs["vision_cfg"]["image_size"], "mean": traits.mean, "std": traits.std}
    net = Net(whole.visual, whole.text, whole.logit_scale.detach(), None, dict(shape.theirs), preprocess)
    embed_dim = shape.theirs["embed_dim"]
    towers = ImageTower(net, embed_dim), TextTower(net, CONTEXT, SimpleNamespace(pad_id=0, eot_id=49407))
    return TwoTower(*towers, embed_dim=embed_dim, normalize=True, logit_scale=LogitScale())


def convert_weights(pair: ModelPair, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return open_clip's weights, or their gradients, under our model's names and shapes."""
    source: Any = pair.translator
    custom = convert_to_custom_text_state_dict(dict(tensors))
    for prefix, part in (("visual.", source.image.net), ("text.", source.text.net)):
        part.load_state_dict({k.removeprefix(prefix): x for k, x in custom.items() if k.startswith(prefix)})
    with torch.no_grad():
        source.logit_scale.copy_(custom["logit_scale"].reshape(1))
    parts = transferable_weights(pair.ours, source)
    if len(parts) < 3:
        raise ValueError(f"only {', '.join(parts) or 'nothing'} can be converted")
    return {name: x.clone() for part in parts.values() for name, x in part.items()}


def compare_pair(pair: ModelPair, mine: Tensor, theirs: Tensor) -> dict[str, float]:
    """Return the differences of two outputs, and of the gradients that their backward passes left in the models."""
    return {"forward": largest_difference(mine, theirs), "gradients": gradient_gap(pair)}


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((a.detach().double() - b.detach().double()).abs().max())


def gradient_gap(pair: ModelPair) -> float:
    """Return the difference of the gradients that both models hold."""
    found = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in pair.theirs.named_parameters()}
    expected = convert_weights(pair, {k: x.float().cpu() for k, x in found.items()})
    return gradients_apart(gradients_of(pair.ours), expected)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that a model holds, on the CPU."""
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def gradients_apart(own: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference of a parameter's gradients, in norm, relative to the expected gradient.

    Norms below 1e-5 of the total count as that: some gradients vanish (the key bias of an attention).
    """
    least = 1e-5 * float(torch.stack([x.norm() for x in expected.values()]).norm())
    gaps = {name: own[name] - x if name in own else x for name, x in expected.items()}
    return max(float(gap.norm()) / max(float(expected[name].norm()), least) for name, gap in gaps.items())


def zero_grads(*models: nn.Module) -> None:
    for model in models:
        model.zero_grad(set_to_none=True)


def pad_to_context(tokens: Tensor) -> Tensor:
    """Pad tokens to the 77 per text that open_clip takes."""
    return nn.functional.pad(tokens, (0, CONTEXT - tokens.shape[1]))
