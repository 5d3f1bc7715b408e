"""A second modality beside texts: an own tower, an own scale, rows that lack it, a hook that makes it."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import (
    NO_KEY,
    NO_TEXT,
    Batch,
    Drawn,
    Features,
    LogitScale,
    at_least_float32,
    both_ways,
    chunked,
    seed_of,
)

SALT = 11
LENGTH = 32
"""Values of a profile that a corpus stores."""


def draw_profiles(
    drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, names: Sequence[str], missing: float
) -> dict[str, Tensor]:
    """For each name float32 (b, W), zeros where ``has_NAME`` is false, from (seed, draw) alone."""
    extra: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        rows, has = [], []
        for one in drawn:
            noise = torch.Generator().manual_seed(seed_of(one.seed, one.draw, SALT, number))
            has.append(bool(torch.rand((), generator=noise) >= missing))
            row = one.image.float().mean((0, 1)) / 255
            rows.append((row + 0.05 * torch.randn(row.shape, generator=noise)) * has[-1])
        extra |= {name: torch.stack(rows), f"has_{name}": torch.tensor(has)}
    return extra


def stored_profiles(
    drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, names: Sequence[str], length: int
) -> dict[str, Tensor]:
    """For each name float32 (b, length) from the corpus's media, zeros where ``has_NAME`` is false."""
    extra: dict[str, Tensor] = {}
    for name in names:
        has = torch.tensor([name in one.media for one in drawn])
        rows = torch.zeros(len(drawn), length)
        for row, one in zip(rows, drawn, strict=True):
            if name in one.media:
                row[:] = torch.frombuffer(bytearray(one.media[name]), dtype=torch.float32)
        extra |= {name: rows, f"has_{name}": has}
    return extra


class ProfileBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.fc(self.norm(x)))


class ProfileTower(nn.Module):
    """(b, W) -> (b, width)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(inputs, width)
        self.units = nn.ModuleList(ProfileBlock(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.units:
            x = block(x)
        return x


class Many(nn.Module):
    def __init__(
        self, towers: dict[str, nn.Module], embed_dim: int, scale: LogitScale, missing: float | None, chunks: int
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.projections = nn.ModuleDict(
            {name: nn.Linear(tower.width, embed_dim, bias=False) for name, tower in towers.items()}
        )
        self.others = tuple(name for name in towers if name not in ("image", "text"))
        self.scales = nn.ParameterDict(
            {name: nn.Parameter(torch.full([1], math.log(scale.init))) for name in ("text", *self.others)}
        )
        self.max_log_scale = math.log(scale.max)
        self.embed_dim, self.image_width, self.chunks = embed_dim, towers["image"].width, chunks
        if missing is None:
            self.extra = partial(stored_profiles, names=self.others, length=LENGTH)
        else:
            self.extra = partial(draw_profiles, names=self.others, missing=missing)

    def _encode(self, name: str, x: Tensor) -> Features:
        def run(part: Tensor) -> tuple[Tensor, Tensor]:
            pooled = self.towers[name](part)
            joint = at_least_float32(self.projections[name](pooled))
            return at_least_float32(pooled), F.normalize(joint, dim=-1)

        return Features(*chunked(run, x, self.chunks))

    def encode_image(self, images: Tensor) -> Features:
        return self._encode("image", images / 127.5 - 1)

    def encode_text(self, tokens: Tensor) -> Features:
        return self._encode("text", tokens)

    def encode_extra(self, name: str, x: Tensor) -> Features:
        return self._encode(name, x)

    def scale(self, name: str = "text") -> Tensor:
        return self.scales[name].exp().squeeze(0)

    def after_step(self) -> None:
        with torch.no_grad():
            for scale in self.scales.values():
                scale.clamp_(max=self.max_log_scale)


class Bind(nn.Module):
    """Every branch runs in every step; where nothing has a modality its share is 0, with a gradient of 0."""

    score, activation = "text", "softmax"
    reads_media = True

    def forward(self, model: Many, batch: Batch) -> dict[str, Tensor]:
        u = model.encode_image(batch.images).embed
        v = model.encode_text(batch.tokens).embed[batch.text_index]
        keys = batch.keys.masked_fill(batch.text_index == NO_TEXT, NO_KEY)
        parts = {"text": both_ways(u, v, keys, model.scale("text"))["loss"]}
        for name in model.others:
            k = model.encode_extra(name, batch.extra[name]).embed
            keys = batch.draws.masked_fill(~batch.extra[f"has_{name}"], NO_KEY)
            parts[name] = both_ways(u, k, keys, model.scale(name))["loss"]
        logged = {f"loss_{name}": part.detach() for name, part in parts.items()}
        return {"loss": torch.stack([*parts.values()]).sum(), **logged}
