"""Weights of an open_clip model, renamed for another model that has the same towers, or under open_clip's own names."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from open_clip.transformer import TextTransformer as OpenText
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from unicl_cli.encoders.open_clip import ImageTower, TextTower, build_net
from unicl_cli.encoders.timm import TimmTower
from unicl_cli.encoders.transformer import TextTransformer

BLOCK = {"attn.in_proj_": "qkv.", "attn.out_proj.": "proj.", "mlp.c_fc.": "fc1.", "mlp.c_proj.": "fc2."}
TOP = {"token_embedding.weight": "tok.weight", "positional_embedding": "pos", "ln_final.": "ln."}


def transferable_weights(model: nn.Module, source: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the weights of ``source`` (the encoder `open_clip`) that ``model`` can take: image, text, logit_scale.

    A tower is taken whole or not at all.
    """
    mine, theirs = model.state_dict(), source.state_dict()
    parts = cast("Any", model), cast("Any", source)
    if not hasattr(model, "image") or not hasattr(model, "text"):
        return {}
    same = {part: {key: x for key, x in theirs.items() if key.startswith(f"{part}.")} for part in ("image", "text")}
    made = {"image": image_weights(*parts), "text": text_weights(*parts)}
    choices = [(part, found) for part in same for found in (same[part], made[part]) if found]
    found = {part: tensors for part, tensors in choices if fits_tower(mine, tensors, part)}
    if "logit_scale" in mine:
        found["logit_scale"] = {"logit_scale": theirs["logit_scale"]}
    return found


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def fits_tower(mine: Mapping[str, Tensor], found: Mapping[str, Tensor], part: str) -> bool:
    """Return True if every tensor of this tower is there, in its shape."""
    own = {key: value.shape for key, value in mine.items() if key.startswith(f"{part}.")}
    return own == shapes_of(found)


def text_weights(model: Any, source: Any) -> dict[str, Tensor]:
    """Return the weights of CLIP's text tower under the names of `transformer`; none if either is something else."""
    trunk = getattr(model.text, "trunk", None)
    net = source.text.net
    if (
        not isinstance(trunk, TextTransformer)
        or not isinstance(net, OpenText)
        or not isinstance(source.text, TextTower)
    ):
        return {}
    if not source.text.causal or trunk.heads != net.heads or trunk.quick_gelu != uses_quick_gelu(net):
        return {}
    found: dict[str, Tensor] = {}
    for key, value in net.state_dict().items():
        if key.startswith("text_projection"):
            found["text.proj.weight"] = value if key.endswith("weight") else value.T
            continue
        found[f"text.trunk.{our_name(key)}"] = value[: len(trunk.pos)] if key == "positional_embedding" else value
    return found


def our_name(key: str) -> str:
    """Translate a name in open_clip's text tower to the name in ours."""
    for old, new in TOP.items():
        if key.startswith(old):
            return new + key[len(old) :]
    key = key.replace("transformer.resblocks.", "blocks.")
    return next((key.replace(old, new) for old, new in BLOCK.items() if old in key), key)


def uses_quick_gelu(net: nn.Module) -> bool:
    """Return True if the tower uses the approximate GELU of the first CLIP."""
    return any(type(module).__name__ == "QuickGELU" for module in net.modules())


def image_weights(model: Any, source: Any) -> dict[str, Tensor]:
    """Return the weights under the names of `timm`: the same backbone, or timm's form of open_clip's ViT; else none."""
    trunk = getattr(model.image, "trunk", None)
    tower, net = source.image, source.image.net
    if not isinstance(trunk, TimmTower) or not isinstance(tower, ImageTower):
        return {}
    mine, theirs = trunk.traits, tower.traits
    if tuple(mine.mean) != tuple(theirs.mean) or tuple(mine.std) != tuple(theirs.std):
        return {}
    if isinstance(net, VisionTransformer):
        return vit_weights(trunk, net)
    projection = getattr(getattr(net, "head", None), "proj", None)
    if not isinstance(projection, nn.Linear) or len(list(projection.parameters())) > 1:
        return {}
    return with_prefix(net.trunk.state_dict()) | {"image.proj.weight": projection.weight.detach()}


def vit_weights(trunk: TimmTower, net: Any) -> dict[str, Tensor]:
    """Return the weights of open_clip's ViT under the names of timm's `vit_*_clip_*`."""
    backbone: Any = trunk.model
    if not isinstance(backbone, TimmVisionTransformer) or uses_quick_gelu(net) != uses_quick_gelu(backbone):
        return {}
    state = {f"visual.{key}": value for key, value in net.state_dict().items()}
    kept = {key: value for key, value in checkpoint_filter_fn(state, backbone).items() if "head." not in key}
    if backbone.patch_embed.proj.bias is not None:  # open_clip's patches have none
        kept.setdefault("patch_embed.proj.bias", torch.zeros(backbone.embed_dim))
    return with_prefix(kept) | {"image.proj.weight": net.proj.detach().T}


def with_prefix(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"image.trunk.model.{key}": value for key, value in backbone.items()}


def is_built_by_open_clip(model: nn.Module) -> bool:
    """Return True if open_clip builds tensors of these shapes from the configuration of the encoder `open_clip`.

    It builds a timm backbone at its published image size alone; some of them have other shapes at another size.
    """
    return shapes_of(published_tensors(model)) == built_shapes("open_clip", cast("Any", model).text.config["model_cfg"])


def built_shapes(name: str, config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Return the shapes of the tensors that open_clip builds from a model_cfg; ``name`` is the model's in errors."""
    plain = {key: value for key, value in deepcopy(config).items() if key != "custom_text"}
    with torch.device("meta"):
        net = build_net(name, plain)
    return shapes_of(net.state_dict())


def published_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the encoder `open_clip` under the names of open_clip's CustomTextCLIP."""
    names = {"image.net.": "visual.", "text.net.": "text.", "text.logit_bias": "logit_bias"}
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        old = next((prefix for prefix in names if key.startswith(prefix)), "")
        found[names.get(old, "") + key[len(old) :]] = value
    return found | {"logit_scale": found["logit_scale"].reshape(())}
