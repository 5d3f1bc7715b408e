"""The transformer of ImageBind's further modalities: sounds, grey images, motion (section 3.3)."""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from unicl_cli.api import MediaKind, UniclError
from unicl_imagebind.readers import GreyReader, MotionReader, SoundReader

Reader = SoundReader | GreyReader | MotionReader


class Patches(nn.Conv2d):
    """(b, 1, H, W) -> (b, tokens, width): a token for each patch, which may overlap."""

    def __init__(self, size: tuple[int, int], patch: int, stride: int, width: int) -> None:
        if patch > min(size):
            raise UniclError(f"patch: {patch} is larger than an input of {size[0]} x {size[1]}", "lower patch")
        super().__init__(1, width, patch, stride)
        self.count = ((size[0] - patch) // stride + 1) * ((size[1] - patch) // stride + 1)
        self.width = width

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).flatten(2).transpose(1, 2)


class Windows(nn.Linear):
    """(b, 6, samples) -> (b, tokens, width): a token for each window of samples of all channels."""

    def __init__(self, samples: int, window: int, width: int) -> None:
        if samples % window:
            raise UniclError(f"window: {samples} samples are not cut by windows of {window}", "change window")
        super().__init__(6 * window, width)
        self.count, self.window, self.width = samples // window, window, width

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unfold(2, self.window, self.window).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm self-attention, with a learned key and value besides those of the tokens, and an MLP."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, add_bias_kv=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.drop(self.attention(y, y, y, need_weights=False)[0])
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class MediaTower(nn.Module):
    """Media as their ``reader`` gives them -> (b, width): the class token's output after a LayerNorm.

    ``suffixes`` are those of its files, with a place ``{name}`` for that of the modality. Several clips of a sound are
    encoded one by one, and averaged.
    """

    def __init__(
        self,
        stem: Patches | Windows,
        reader: Reader,
        suffixes: tuple[str, ...],
        *,
        layers: int,
        heads: int,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        if stem.width % heads:
            raise UniclError(f"heads: a width of {stem.width} is not a multiple of {heads} heads", "change heads")
        super().__init__()
        self.stem, self.reader, self.suffixes, self.width = stem, reader, suffixes, stem.width
        self.start = nn.Parameter(torch.zeros(1, 1, stem.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, stem.count + 1, stem.width))
        rates = [drop_path * number / max(1, layers - 1) for number in range(layers)]
        self.units = nn.ModuleList(Block(stem.width, heads, rate) for rate in rates)
        self.norm, self.dropout = nn.LayerNorm(stem.width), nn.Dropout(dropout)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the class token and the positions."""
        return {"start", "positions"}

    def kind(self, name: str) -> MediaKind:
        """Return the files of this tower under the name of a modality."""
        return MediaKind(name, tuple(suffix.format(name=name) for suffix in self.suffixes), self.reader)

    def forward(self, x: Tensor) -> Tensor:
        rows, x = len(x), x.to(self.start.dtype)
        is_sound = isinstance(self.reader, SoundReader)
        x = self.stem(x.flatten(0, 1)[:, None] if is_sound else x)
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.units:
            x = block(x)
        x = self.dropout(self.norm(x[:, 0]))
        return x.view(rows, -1, self.width).mean(1) if is_sound else x


def media_tower(tower: nn.Module, name: str) -> MediaTower:
    """Return the tower if it reads media. UniclError if not: an image tower reads none."""
    if not isinstance(tower, MediaTower):
        raise UniclError(
            f"model.others.{name}: {type(tower).__name__} reads no media",
            "use audio-transformer, grey-transformer or imu-transformer",
        )
    return tower
