"""A small convolutional tower that learns 32-pixel pictures in seconds on a CPU."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Stage(nn.Module):
    """3×3 convolution, GroupNorm (the same for any batch and any number of processes), GELU, halving."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, outputs)
        self.halve = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.halve(self.norm(self.conv(x))))


class Cnn(nn.Module):
    """(b, 3, H, W) -> (b, width · 2^(stages-1)): the mean over the last grid; ``width`` a multiple of 8."""

    def __init__(self, width: int, stages: int) -> None:
        super().__init__()
        widths = [3, *(width * 2**i for i in range(stages))]
        self.stages = nn.ModuleList(Stage(a, b) for a, b in pairwise(widths))
        self.width = widths[-1]

    @property
    def units(self) -> Sequence[nn.Module]:
        return list(self.stages)

    def tokens(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) -> (b, N, width): the last grid."""
        for stage in self.stages:
            x = stage(x)
        return x.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x).mean(1)
