"""A small convolutional image tower that learns 32-pixel images in seconds on a CPU."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.errors import UniclError

GROUPS = 8
"""Groups of each normalisation."""
GRID = 4
"""Side of the last grid in cells, for any image size."""


class ConvStage(nn.Module):
    """3×3 convolution with stride 2, GroupNorm (independent of the batch and the number of processes), GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


class Cnn(nn.Module):
    """(b, 3, H, W) -> (b, width · 2^(stages-1)); ``width`` is a multiple of 8.

    The last 4×4 grid is flattened, not averaged: digits differ in where their strokes are.
    """

    def __init__(self, width: int, stages: int) -> None:
        super().__init__()
        if width % GROUPS:
            raise UniclError(f"cnn: width {width} is not a multiple of {GROUPS}", f"set width to {GROUPS}, 16, 24, …")
        widths = [3, *(width * 2**i for i in range(stages))]
        self.stages = nn.ModuleList(ConvStage(a, b) for a, b in pairwise(widths))
        self.width = widths[-1]
        self.read = nn.Linear(self.width * GRID**2, self.width)

    @property
    def units(self) -> Sequence[nn.Module]:
        return list(self.stages)

    def _grid(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return F.adaptive_avg_pool2d(x, GRID)

    def tokens(self, x: Tensor) -> Tensor:
        """Map (b, 3, H, W) to the cells of the last grid, (b, 16, width)."""
        return self._grid(x).flatten(2).transpose(1, 2)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Map (b, 3, H, W) of any size to the output of each stage, (b, C, H / s, W / s) with s = 2, 4, 8, …."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self._grid(x).flatten(1))
