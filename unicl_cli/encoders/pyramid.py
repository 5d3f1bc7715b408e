"""Feature maps of the backbones of timm and open_clip, from fine to coarse, for images of any size."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer as ClipVisionTransformer
from timm.layers.format import Format
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from unicl_cli.core.foreign import explain_foreign
from unicl_cli.errors import UniclError

OTHERS = "use another image tower: a ResNet, ConvNeXt, Swin, FocalNet or ViT"


def timm_pyramid(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """Map (b, 3, H, W) to the last feature map of each scale, (b, C, H / s, W / s); a ViT has one scale."""
    net: Any = backbone
    name = str(net.pretrained_cfg["architecture"])
    if not hasattr(net, "forward_intermediates"):
        raise UniclError(f"{name}: timm has no feature maps of this model", OTHERS)
    accept_any_size(net)
    with explain_foreign(f"{name}: gives no feature maps of images of {x.shape[3]} x {x.shape[2]} px", OTHERS):
        return list(net.forward_intermediates(x, indices=last_of_scales(net), intermediates_only=True))


def last_of_scales(backbone: Any) -> list[int]:
    """Return the number of the last feature map of each scale that timm lists."""
    info = backbone.feature_info
    entries: Sequence[Any] = info if isinstance(info, list) else info.info
    return list({entry["reduction"]: number for number, entry in enumerate(entries)}.values())


def accept_any_size(backbone: Any) -> None:
    """Let a backbone that was built for one image size take any; at its own size it computes the same as before.

    Swin then makes the masks of shifted windows for each image; a ViT interpolates its position embeddings.
    """
    for module in backbone.modules():
        for name, value in (("strict_img_size", False), ("dynamic_mask", True)):
            if hasattr(module, name):
                setattr(module, name, value)
    embed = getattr(backbone, "patch_embed", None)
    if getattr(backbone, "dynamic_img_size", None) is False and getattr(embed, "flatten", False):
        backbone.dynamic_img_size = True
        cast("Any", embed).flatten, cast("Any", embed).output_fmt = False, Format.NHWC


def open_clip_pyramid(visual: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the same of an image tower of open_clip."""
    net: Any = visual
    if hasattr(net, "trunk"):
        return timm_pyramid(net.trunk, x)
    if isinstance(visual, ModifiedResNet):
        return net.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)["image_intermediates"]
    if not isinstance(visual, ClipVisionTransformer):
        raise UniclError(f"{type(visual).__name__}: open_clip has no feature maps of this model", OTHERS)
    grid = net.conv1(x)  # (b, width, H / patch, W / patch)
    positions = resample_abs_pos_embed(
        net.positional_embedding[None], list(grid.shape[2:]), list(net.grid_size), num_prefix_tokens=1
    )
    start = net.class_embedding.expand(len(x), 1, -1)
    states = torch.cat([start, grid.flatten(2).transpose(1, 2)], 1) + positions
    states = net.transformer(net.ln_pre(net.patch_dropout(states)))
    return [states[:, 1:].transpose(1, 2).unflatten(2, grid.shape[2:])]
