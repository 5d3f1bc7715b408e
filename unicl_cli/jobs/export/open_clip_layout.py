"""Two towers of ours as open_clip builds them: its configuration, and the tensors under its names."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from timm.layers.activations import QuickGELU
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm as TimmNorm
from timm.layers.patch_dropout import PatchDropout
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmVit
from torch import Tensor, nn

from unicl_cli.core.towers import traits_of
from unicl_cli.encoders.carry import BLOCK, TOP, built_shapes, published_tensors, shapes_of, uses_quick_gelu
from unicl_cli.encoders.open_clip import ImageTower
from unicl_cli.encoders.timm import LastBlock, TimmTower
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.errors import UniclError
from unicl_cli.model import TwoTower

VIT_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "ls1.": "ls_1.",
    "ls2.": "ls_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
VIT_TOP = {"patch_embed.proj.weight": "conv1.weight", "norm_pre.": "ln_pre.", "norm.": "ln_post."}
VIT_MODULES = {
    *(TimmVit, PatchEmbed, Block, LastBlock, Attention, Mlp, LayerScale, DropPath, PatchDropout, TimmNorm, QuickGELU),
    *(nn.LayerNorm, nn.Linear, nn.Conv2d, nn.GELU, nn.Dropout, nn.Identity, nn.Sequential),
}
"""The modules of a ViT that open_clip has as well."""
BY_NAME = "export a model at the image size of the backbone's name, without args and small_stem"
TOWERS = "export a model with an image tower of `timm` or `open_clip` and the text tower `transformer`"


class Part(NamedTuple):
    """One tower: its part of the configuration, its tensors, and whether it has the GELU of the first CLIP."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    quick_gelu: bool | None
    """None for a tower that open_clip builds with its own activation, whatever the configuration says."""


class Layout(NamedTuple):
    """The content of open_clip_config.json and of the weights."""

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tensors: dict[str, Tensor]


def layout_of_model(model: nn.Module, image_size: tuple[int, int]) -> Layout:
    """Describe a model that takes images of ``image_size`` (height, width) as open_clip does.

    UniclError for towers that open_clip does not have.
    """
    if not isinstance(model, TwoTower) or model.text is None:
        raise UniclError("the model has no image and text tower that compare alone", TOWERS)
    if model.has_kind_heads or model.biased or not model.normalize:
        raise UniclError(
            "its vectors are more than directions (heads, a bias for each class, or normalize: false)", TOWERS
        )
    found = _published(model) if isinstance(model.image, ImageTower) else _assembled(model, image_size)
    _check_shapes(found)
    return found


def _published(model: TwoTower) -> Layout:
    """Describe a model of the encoder `open_clip`, which knows its configuration."""
    whole: dict[str, Any] = deepcopy(cast("Any", model.text).config)
    if "hf_model_name" in whole["model_cfg"]["text_cfg"]:
        problem = (
            "open_clip looks for the configuration of its text tower (of transformers) on the hub, not in a folder"
        )
        raise UniclError(problem, "use the folder of the run, or `unicl mix -o`, on this machine")
    return Layout(whole["model_cfg"], whole["preprocess_cfg"], published_tensors(model))


def _assembled(model: TwoTower, image_size: tuple[int, int]) -> Layout:
    """Describe a model whose towers were chosen one by one."""
    image, text = _image_part(cast("Any", model.image), image_size), _text_part(cast("Any", model.text))
    if image.quick_gelu is not None and image.quick_gelu != text.quick_gelu:
        raise UniclError("one of its towers has quick_gelu, the other has not", "open_clip has one activation for both")
    model_cfg = {
        "embed_dim": model.embed_dim,
        "quick_gelu": bool(text.quick_gelu),
        "custom_text": True,
        "vision_cfg": image.config,
        "text_cfg": text.config,
    }
    traits = traits_of(cast("Any", model.image).trunk)
    preprocess_cfg = {
        "size": list(image_size),
        "mean": list(traits.mean),
        "std": list(traits.std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    scale = {"logit_scale": model.logit_scale.detach().reshape(())}
    return Layout(model_cfg, preprocess_cfg, image.tensors | text.tensors | scale)


def _image_part(tower: Any, image_size: tuple[int, int]) -> Part:
    trunk = getattr(tower, "trunk", None)
    if not isinstance(trunk, TimmTower):
        raise UniclError(f"open_clip has no image tower like {type(trunk or tower).__name__}", TOWERS)
    size = image_size[0] if image_size[0] == image_size[1] else list(image_size)
    backbone: Any = trunk.model
    projection = tower.proj.weight.detach()
    if is_plain_vit(backbone):
        return _vit_part(backbone, projection, size)
    name = backbone.pretrained_cfg["architecture"]
    if changed := [key for key in trunk.args if "drop" not in key]:
        raise UniclError(f"open_clip builds {name} by its name alone, without args ({', '.join(changed)})", BY_NAME)
    config = {"timm_model_name": name, "timm_model_pretrained": False, "image_size": size}
    tensors = {f"visual.trunk.{name}": x for name, x in backbone.state_dict().items()}
    if trunk.width == trunk.token_width:
        config |= {"timm_pool": "", "timm_proj": "linear"}
        return Part(config, tensors | {"visual.head.proj.weight": projection}, None)
    config |= {"timm_pool": "avg", "timm_proj": None}  # behind a hidden layer: in the place of timm's classifier
    classifier = f"visual.trunk.{backbone.pretrained_cfg['classifier']}"
    head = {f"{classifier}.weight": projection, f"{classifier}.bias": projection.new_zeros(len(projection))}
    return Part(config, tensors | head, None)


def is_plain_vit(net: Any) -> bool:
    """Return whether open_clip's own ViT computes the same: it has a class token that is read, and nothing besides."""
    if type(net) is not TimmVit or not len(net.blocks) or not {type(module) for module in net.modules()} <= VIT_MODULES:
        return False
    block: Any = net.blocks[0]
    width, mlp, attn = net.embed_dim, block.mlp.fc1.out_features, block.attn
    norms: list[Any] = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    absent = (net.fc_norm, net.patch_embed.norm, attn.q_norm, attn.norm, block.mlp.norm)
    return (
        net.global_pool == "token"
        and net.num_prefix_tokens == 1
        and net.pos_embed is not None
        and not (net.no_embed_class or net.dynamic_img_size or net.patch_embed.dynamic_img_pad)
        and not isinstance(net.norm, nn.Identity)
        and all(isinstance(module, nn.Identity) for module in absent)
        and len({norm.eps for norm in norms}) == 1
        and all(norm.bias is not None for norm in norms)
        and getattr(attn, "gate", None) is None
        and attn.proj.bias is not None
        and attn.num_heads * attn.head_dim == width
        and getattr(block.mlp.act, "approximate", "none") == "none"
        and int(width * (mlp / width)) == mlp
        and len({*net.patch_embed.patch_size}) == 1
    )


def _vit_part(net: Any, projection: Tensor, size: int | list[int]) -> Part:
    """Describe timm's ViT as open_clip's: it has no bias for patches, which moves into their positions."""
    state: Mapping[str, Tensor] = {name: x.detach() for name, x in net.state_dict().items()}
    block = net.blocks[0]
    positions = state["pos_embed"][0].clone()
    if net.patch_embed.proj.bias is not None:
        positions[1:] += state["patch_embed.proj.bias"]
    tensors = {"class_embedding": state["cls_token"].reshape(-1), "positional_embedding": positions}
    for name, x in state.items():
        if name.startswith("blocks."):
            tensors[f"transformer.resblocks.{_rename(name.removeprefix('blocks.'), VIT_BLOCK)}"] = x
        elif any(name.startswith(prefix) for prefix in VIT_TOP):
            tensors[_rename(name, VIT_TOP)] = x
    for number in range(len(net.blocks)):
        place = f"transformer.resblocks.{number}.attn.in_proj_bias"
        tensors.setdefault(place, torch.zeros(3 * net.embed_dim))
    patch = net.patch_embed.patch_size
    config = {
        "image_size": size,
        "patch_size": patch[0],
        "width": net.embed_dim,
        "layers": len(net.blocks),
        "head_width": net.embed_dim // block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / net.embed_dim,
        "no_ln_pre": isinstance(net.norm_pre, nn.Identity),
        "norm_kwargs": {"eps": net.norm.eps},
    }
    if not isinstance(block.ls1, nn.Identity):
        config["ls_init_value"] = 1e-5  # overwritten by the weights
    found = {f"visual.{name}": x for name, x in tensors.items()}
    return Part(config, found | {"visual.proj": projection.T}, uses_quick_gelu(net))


def _rename(name: str, names: Mapping[str, str]) -> str:
    return next((name.replace(old, new) for old, new in names.items() if old in name), name)


def _text_part(tower: Any) -> Part:
    trunk = getattr(tower, "trunk", None)
    if not isinstance(trunk, TextTransformer):
        raise UniclError(f"open_clip has no text tower like {type(trunk or tower).__name__}", TOWERS)
    words = len(trunk.tok.weight)
    if trunk.traits.prompt_token is not None:
        raise UniclError("its prompts begin with a token of their own (model.text.prefix)", "export a model without it")
    tensors = {f"text.{_their_name(name)}": x.detach() for name, x in trunk.state_dict().items()}
    config = {
        "context_length": trunk.context_length,
        "vocab_size": words,
        "width": trunk.width,
        "heads": trunk.heads,
        "layers": len(trunk.blocks),
        "norm_kwargs": {"eps": trunk.ln.eps},
    }
    if trunk.eot_id != words - 1:  # else the largest number of a text, which is open_clip's default
        config |= {"pool_type": "eos", "eos_id": trunk.eot_id}
    return Part(config, tensors | {"text.text_projection": tower.proj.weight.detach().T}, trunk.quick_gelu)


def _their_name(name: str) -> str:
    """Translate a name in our text tower to the name in open_clip's."""
    for theirs, ours in TOP.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    name = f"transformer.resblocks.{name.removeprefix('blocks.')}"
    return next((name.replace(f".{ours}", f".{theirs}") for theirs, ours in BLOCK.items() if f".{ours}" in name), name)


def _check_shapes(layout: Layout) -> None:
    """Raise UniclError if open_clip builds other tensors, as for a timm backbone of another size or with options."""
    theirs, ours = built_shapes("to export", layout.model_cfg), shapes_of(layout.tensors)
    odd = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if odd:
        backbone = layout.model_cfg["vision_cfg"].get("timm_model_name")
        raise UniclError(
            f"open_clip builds {backbone or 'this model'} with other tensors (first {odd[0]})",
            BY_NAME if backbone else "report this as a bug",
        )
