"""The two-tower model: image and text towers, projections into one space, the logit scale."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unicl_cli.contracts import Features, LogitScale, Tower
from unicl_cli.core.host_copy import split_rows
from unicl_cli.core.text_cache import TextCache, build_text_cache
from unicl_cli.errors import UniclError

NO_TOWER = "texts are to be encoded, but the model has no text tower (model.text is null)"
Encode = Callable[[Tensor], tuple[Tensor, ...]]


def chunked(run: Encode, x: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """``run(x)`` in ``chunks`` recomputed parts: the same value and gradients, one part's activations at a time.

    The number of parts is the same on every rank whatever the rows, since FSDP2 gathers weights in each forward.
    """
    if chunks == 1 or not torch.is_grad_enabled():
        return run(x)
    outs = [checkpoint(run, part, use_reentrant=False) for part in split_rows(x, chunks)]  # a repeated row's is dropped
    return tuple(torch.cat(column)[: len(x)] for column in zip(*outs, strict=True))


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 and fp16 to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Projected(nn.Module):
    """A tower and its bias-free projection (embed_dim, width); a tower that is ``joint`` already needs none."""

    def __init__(self, trunk: nn.Module, embed_dim: int) -> None:
        super().__init__()
        width = cast("Tower", trunk).width
        self.trunk = trunk
        self.proj = nn.Identity() if getattr(trunk, "joint", False) else nn.Linear(width, embed_dim, bias=False)
        if isinstance(self.proj, nn.Linear):
            nn.init.normal_(self.proj.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tower input -> pooled (n, width), joint (n, embed_dim) before any normalisation."""
        pooled = self.trunk(x)
        return pooled, self.proj(pooled)


def projected(tower: nn.Module, embed_dim: int) -> nn.Module:
    """The tower with a projection; one that ``projects`` gives pooled and joint by itself."""
    return tower if getattr(tower, "projects", False) else Projected(tower, embed_dim)


class TwoTower(nn.Module):
    """Image and text towers into one space of ``embed_dim`` (CLIP 2021, Fig. 3; UniCL, CVPR 2022, section 3.1).

    A tower may own ``mean, std`` (three numbers each, of pixels in [0, 1]); ``text`` None leaves images only.
    """

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module | None,
        *,
        embed_dim: int,
        normalize: bool,
        logit_scale: LogitScale,
        chunks: int = 1,
    ) -> None:
        super().__init__()
        self.image = projected(image, embed_dim)
        self.text = None if text is None else projected(text, embed_dim)
        # a text vector's last entry is its bias: an image vector answers with 1
        self.biased = bool(getattr(text, "biased", False))
        self.embed_dim = embed_dim + self.biased
        self.image_width = cast("Tower", image).width
        self.normalize, self.chunks = normalize, chunks
        self.bank: TextCache | None = None
        self.logit_scale = nn.Parameter(torch.full([1], math.log(logit_scale.init)), requires_grad=logit_scale.learn)
        self.max_log_scale = math.log(logit_scale.max)
        for name, default in (("mean", (0.5, 0.5, 0.5)), ("std", (0.5, 0.5, 0.5))):
            value = torch.tensor(getattr(image, name, default)).view(3, 1, 1)
            self.register_buffer(f"pixel_{name}", value * 255, persistent=False)

    def carry_scale(self, log_scale: Tensor) -> None:
        """Takes over the logarithm of a trained scale; one above the cap stays above it."""
        with torch.no_grad():
            self.logit_scale.copy_(log_scale.reshape(1))
        if not log_scale.is_meta:
            self.max_log_scale = max(self.max_log_scale, float(log_scale))

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (b, 3, H, W) -> normalised floats in the model's own type, on its device."""
        mean, std = cast("Tensor", self.pixel_mean), cast("Tensor", self.pixel_std)
        return (images.to(mean.dtype) - mean) / std

    def encode_image(self, images: Tensor) -> Features:
        """uint8 (b, 3, H, W) -> pooled (b, image_width), embed (b, embed_dim)."""
        if images.dim() != 4:
            raise UniclError(
                f"the loss takes one view of each image, and there are {images.shape[1]}",
                "set data.views to 1, or take a loss of several views, as supcon",
            )
        return Features(*chunked(self._image, images, self.chunks))

    def encode_text(self, tokens: Tensor) -> Features:
        """int64 (U, L) -> pooled (U, width), embed (U, embed_dim)."""
        if self.bank is None or not self.training:
            return Features(*chunked(self._text, tokens, self.chunks))
        known, text = self.bank(tokens), cast("Any", self.text)
        both = (known, text.proj(known)) if isinstance(text, Projected) else known.tensor_split([text.width], 1)
        return Features(*self._ended(*both))

    def _image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled, joint = map(at_least_float32, self.image(self.pixels(images)))
        if self.normalize:
            joint = F.normalize(joint, dim=-1)
        return pooled, torch.cat([joint, torch.ones_like(joint[:, :1])], 1) if self.biased else joint

    def _text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.text is None:
            raise UniclError(NO_TOWER, "give model.text, or take a loss on images alone: ce, supcon")
        return self._ended(*self.text(tokens))

    def _ended(self, pooled: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """What a text tower gives -> pooled, embed."""
        pooled, joint = at_least_float32(pooled), at_least_float32(joint)
        if self.normalize and self.biased:  # the bias is no direction
            return pooled, torch.cat([F.normalize(joint[:, :-1], dim=-1), joint[:, -1:]], 1)
        return pooled, F.normalize(joint, dim=-1) if self.normalize else joint

    def remember_texts(self) -> bool:
        """From here on each text is encoded once in training, if its tower learns no more; is it so?

        For weights that stay as they are; a projection may learn.
        """
        text = self.text
        if isinstance(text, Projected):
            self.bank = build_text_cache(text.trunk, text.trunk)
        elif text is not None:
            self.bank = build_text_cache(text, lambda tokens: torch.cat(text(tokens), 1))
        return self.bank is not None

    def image_tokens(self, images: Tensor) -> Tensor:
        """uint8 (b, 3, H, W) -> (b, N, image_width), from towers that have ``tokens``."""
        return at_least_float32(cast("Any", self.image).trunk.tokens(self.pixels(images)))

    def text_tokens(self, tokens: Tensor) -> Tensor:
        """int64 (U, L) -> (U, L, width), from towers that have ``tokens``."""
        if self.text is None:
            raise UniclError(NO_TOWER, "give model.text, or take a loss on images alone: ce, supcon")
        return at_least_float32(cast("Any", self.text).trunk.tokens(tokens))

    def scale(self, name: str = "text") -> Tensor:
        """(): exp(logit_scale), the factor on cosines; one for every ``name`` here."""
        del name
        return self.logit_scale.exp().squeeze(0)

    def after_step(self) -> None:
        """The cap on the scale. In `forward` a clamp would have gradient 0 at the bound and never come back."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=self.max_log_scale)
