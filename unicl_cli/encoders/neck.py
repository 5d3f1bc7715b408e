"""Necks of detectors on an image tower: FPN on several feature maps, ViTDet's simple pyramid on a single one."""

import math
from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from unicl_cli.errors import UniclError

LEVELS = 4
PROBE = 224
"""The least side in pixels of the blank image that shows what maps a tower has."""


def find_pyramid_tower(model: nn.Module, name: str) -> nn.Module:
    """Return the image tower of a model: the first module under ``model.image`` with a method ``pyramid``."""
    image = getattr(model, "image", None)
    modules = image.modules() if isinstance(image, nn.Module) else ()
    tower = next((module for module in modules if callable(getattr(module, "pyramid", None))), None)
    if tower is None:
        raise UniclError(
            f"model {name}: its image tower gives no feature maps (it has no method pyramid)",
            "use a model with the image tower timm, cnn or open_clip",
        )
    return tower


class TowerPyramid(nn.Module):
    """(b, 3, H, W) -> maps "0", "1", …, "pool" of ``out_channels``, from fine to coarse; H and W divide by ``divisor``.

    Hierarchical towers: Feature Pyramid Network (Lin et al., CVPR 2017) on the last map of each of the four coarsest
    scales. Plain ViTs, whose maps have one scale: the simple feature pyramid (Li et al., ECCV 2022, section 3).
    """

    def __init__(self, tower: nn.Module, image_size: int, out_channels: int) -> None:
        super().__init__()
        self.tower, self.out_channels = tower, out_channels
        side = image_size * math.ceil(PROBE / image_size)
        probe = next(tower.parameters()).new_zeros(1, 3, side, side)
        with torch.no_grad():
            shapes = [tuple(found.shape[1:3]) for found in self.maps(probe)]
        scales = {2 ** round(math.log2(side / height)): place for place, (_, height) in enumerate(shapes)}
        self.places = list(scales.values())[-LEVELS:]
        self.simple = len(self.places) == 1
        channels = [shapes[place][0] for place in self.places]
        if self.simple:
            stride = next(iter(scales))
            self.neck: nn.Module = SimplePyramid(channels[0], out_channels, stride)
            self.strides = [stride // 4, stride // 2, stride, stride * 2]
            self.divisor = math.lcm(2 * stride, round(side / shapes[0][1]))
        else:
            self.neck = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())
            self.strides = list(scales)[-LEVELS:]
            self.divisor = self.strides[-1]

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of the tower."""
        return cast("Any", self.tower).pyramid(x)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        maps = self.maps(x)
        chosen = [maps[place] for place in self.places]
        if self.simple:
            return self.neck(chosen[0], x.shape[2:])
        return self.neck(OrderedDict((str(level), found) for level, found in enumerate(chosen)))


class SimplePyramid(nn.Module):
    """One map of a ViT -> maps at a quarter, a half, once and twice its step (Li et al., ECCV 2022, fig. 2c).

    RoIAlign of torchvision takes steps that are powers of two: the map of 14 px patches is resized to steps of 16 px.
    """

    def __init__(self, width: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half, quarter = width // 2, width // 4
        up_twice = (nn.ConvTranspose2d(width, half, 2, 2), nn.GroupNorm(1, half), nn.GELU())
        scales = (
            nn.Sequential(*up_twice, nn.ConvTranspose2d(half, quarter, 2, 2)),
            nn.ConvTranspose2d(width, half, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2, 2),
        )
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                nn.GroupNorm(1, out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                nn.GroupNorm(1, out_channels),
            )
            for scale, channels in zip(scales, (quarter, half, width, width), strict=True)
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> "OrderedDict[str, Tensor]":
        wanted = (size[0] // self.stride, size[1] // self.stride)
        if tuple(x.shape[2:]) != wanted:
            x = F.interpolate(x, wanted, mode="bilinear", align_corners=False)
        found = OrderedDict((str(level), module(x)) for level, module in enumerate(self.levels))
        found["pool"] = F.max_pool2d(found[str(LEVELS - 1)], 1, 2)
        return found
