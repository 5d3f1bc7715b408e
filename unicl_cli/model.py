"""The two-tower model: image and text towers, projections into one space, the logit scale."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unicl_cli.contracts import Features, LogitScale
from unicl_cli.core.host_copy import split_rows
from unicl_cli.core.image_cache import EncodedImages
from unicl_cli.core.prompt_marks import read_marks
from unicl_cli.core.text_cache import TextCache, build_text_cache
from unicl_cli.core.towers import traits_of
from unicl_cli.errors import UniclError
from unicl_cli.tower_contracts import Tower

NO_TOWER = "model.text: the loss encodes texts, but the model has no text tower"
Encode = Callable[[Tensor], tuple[Tensor, ...]]


def chunked(run: Encode, x: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """Compute ``run(x)`` in ``chunks`` recomputed parts: same value and gradients, activations of one part at a time.

    Every rank computes the same number of parts, however many rows it has: FSDP2 gathers weights in each forward.
    """
    if chunks == 1 or not torch.is_grad_enabled():
        return run(x)
    outs = [checkpoint(run, part, use_reentrant=False) for part in split_rows(x, chunks)]
    return tuple(torch.cat(column)[: len(x)] for column in zip(*outs, strict=True))  # without repeated rows


def at_least_float32(x: Tensor) -> Tensor:
    """Convert bf16 and fp16 to float32; return float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_one_view(images: Tensor) -> None:
    """Raise UniclError for images (b, V, 3, H, W): several views must be encoded as separate images."""
    if images.dim() != 4:
        raise UniclError(
            f"data.views: the loss takes one view per image, got {images.shape[1]}",
            "set data.views=1, or use a loss that takes several views, such as supcon",
        )


class Projected(nn.Module):
    """A tower and its bias-free projection (embed_dim, width); none if the tower's output is ``joint`` already."""

    def __init__(self, trunk: nn.Module, embed_dim: int) -> None:
        super().__init__()
        width = cast("Tower", trunk).width
        self.trunk = trunk
        self.proj = nn.Identity() if traits_of(trunk).joint else nn.Linear(width, embed_dim, bias=False)
        if isinstance(self.proj, nn.Linear):
            nn.init.normal_(self.proj.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map tower input to pooled (n, width) and joint (n, embed_dim), both before normalisation."""
        pooled = self.trunk(x)
        return pooled, self.proj(pooled)


def project(tower: nn.Module, known: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return pooled (n, width) and joint of a tower whose ``known`` part is frozen."""
    if isinstance(tower, Projected):
        return known, tower.proj(known)
    pooled, joint = known.split([width, known.shape[1] - width], 1)
    return pooled, joint


def add_projection(tower: nn.Module, embed_dim: int) -> nn.Module:
    """Return the tower with a projection, or as it is if it ``projects`` itself."""
    return tower if traits_of(tower).projects else Projected(tower, embed_dim)


def check_heads(image: nn.Module, text: nn.Module | None) -> None:
    """Raise UniclError unless an image has a projection for each kind of text."""
    if text is None:
        raise UniclError("model.heads: the model has no text tower", "set model.text, or remove model.heads")
    if traits_of(image).projects or traits_of(image).joint or traits_of(text).biased:
        problem = "model.heads: the towers bring the projection of images, or a bias for each class"
        raise UniclError(problem, "remove model.heads, or choose other towers")


class TwoTower(nn.Module):
    """Image and text towers into one space of ``embed_dim`` (CLIP 2021, Fig. 3; UniCL, CVPR 2022, section 3.1).

    Pixels are normalised with the image tower's own ``mean`` and ``std``; ``text`` None leaves images only.

    With ``heads`` images have two projections of ``embed_dim``, for prompts and for captions. An image vector
    concatenates both; a text vector is 0 in the half of the other kind (`core.prompt_marks`). So their product is that
    of the projection for this text, times 0.5 ** 0.5 where vectors have unit length.
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
        heads: bool = False,
    ) -> None:
        super().__init__()
        self.has_kind_heads = heads
        if heads:
            check_heads(image, text)
        self.image = add_projection(image, embed_dim * (1 + heads))
        self.text = None if text is None else add_projection(text, embed_dim)
        # the last entry of a text vector is its bias, and that of an image vector is 1
        self.biased = text is not None and traits_of(text).biased
        self.embed_dim = embed_dim * (1 + heads) + self.biased
        self.image_width = cast("Tower", image).width
        self.token_width = int(getattr(image, "token_width", self.image_width))
        self.text_width = 0 if text is None else cast("Tower", text).width
        self.normalize, self.chunks = normalize, chunks
        self.bank: TextCache | None = None
        self.logit_scale = nn.Parameter(torch.full([1], math.log(logit_scale.init)), requires_grad=logit_scale.learn)
        self.max_log_scale = math.log(logit_scale.max)
        traits = traits_of(image)
        for name, numbers in (("pixel_mean", traits.mean), ("pixel_std", traits.std)):
            self.register_buffer(name, torch.tensor(numbers).view(3, 1, 1) * 255, persistent=False)

    def carry_scale(self, log_scale: Tensor) -> None:
        """Copy the logarithm of a trained scale; the cap rises to it if it is higher."""
        with torch.no_grad():
            self.logit_scale.copy_(log_scale.reshape(1))
        if not log_scale.is_meta:
            self.max_log_scale = max(self.max_log_scale, float(log_scale))

    def pixels(self, images: Tensor) -> Tensor:
        """Normalise uint8 (b, 3, H, W) to floats in the model's own type, on its device."""
        mean, std = cast("Tensor", self.pixel_mean), cast("Tensor", self.pixel_std)
        return (images.to(mean.dtype) - mean) / std

    def encode_image(self, images: Tensor | EncodedImages) -> Features:
        """Encode uint8 (b, 3, H, W) to pooled (b, image_width) and embed (b, embed_dim).

        Images whose frozen tower has encoded them (`encode_frozen`) are finished here.
        """
        if isinstance(images, EncodedImages):
            return Features(*chunked(self._known_image, images.outputs, self.chunks))
        check_one_view(images)
        return Features(*chunked(self._image, images, self.chunks))

    def encode_text(self, tokens: Tensor) -> Features:
        """Encode int64 (U, L) to pooled (U, width) and embed (U, embed_dim)."""
        plain, is_prompt = read_marks(tokens) if self.has_kind_heads else (tokens, None)
        if self.bank is None or not self.training:
            pooled, embed = chunked(self._text, plain, self.chunks)
        else:
            known = self.bank(plain)
            pooled, embed = self._finish_text(*project(cast("nn.Module", self.text), known, self.text_width))
        if is_prompt is not None:
            embed = torch.cat([embed * is_prompt, embed * ~is_prompt], 1)
        return Features(pooled, embed)

    def encode_frozen(self, images: Tensor) -> Tensor | None:
        """Encode uint8 (b, 3, H, W) as far as the frozen image tower goes, (b, D); None if it learns.

        ``encode_image`` takes the result as `EncodedImages`; a projection may learn.
        """
        tower = self.image.trunk if isinstance(self.image, Projected) else self.image
        if tower.training or any(p.requires_grad for p in tower.parameters()):
            return None
        outputs = tower(self.pixels(images))
        return outputs if isinstance(self.image, Projected) else torch.cat(outputs, 1)

    def _image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._finish_image(*self.image(self.pixels(images)))

    def _known_image(self, known: Tensor) -> tuple[Tensor, Tensor]:
        return self._finish_image(*project(self.image, known, self.image_width))

    def _finish_image(self, pooled: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Convert an image tower's output to pooled and embed."""
        pooled, joint = at_least_float32(pooled), at_least_float32(joint)
        if self.normalize and self.has_kind_heads:
            joint = F.normalize(joint.unflatten(1, (2, -1)), dim=-1).flatten(1) * 0.5**0.5
        elif self.normalize:
            joint = F.normalize(joint, dim=-1)
        return pooled, torch.cat([joint, torch.ones_like(joint[:, :1])], 1) if self.biased else joint

    def _text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.text is None:
            raise UniclError(NO_TOWER, "set model.text, or use a loss on images alone: ce, supcon")
        return self._finish_text(*self.text(tokens))

    def _finish_text(self, pooled: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Convert a text tower's output to pooled and embed."""
        pooled, joint = at_least_float32(pooled), at_least_float32(joint)
        if self.normalize and self.biased:  # the bias is not part of the direction
            return pooled, torch.cat([F.normalize(joint[:, :-1], dim=-1), joint[:, -1:]], 1)
        return pooled, F.normalize(joint, dim=-1) if self.normalize else joint

    def remember_texts(self) -> bool:
        """Start to encode each text only once in training; return False if the text tower cannot.

        Its weights have to be in place and frozen; a projection may learn.
        """
        text = self.text
        if isinstance(text, Projected):
            self.bank = build_text_cache(text.trunk, text.trunk)
        elif text is not None:
            self.bank = build_text_cache(text, lambda tokens: torch.cat(text(tokens), 1))
        return self.bank is not None

    def image_tokens(self, images: Tensor) -> Tensor:
        """Encode uint8 (b, 3, H, W) to (b, N, token_width), the states before pooling.

        A tower without ``tokens`` has one: its pooled output.
        """
        check_one_view(images)
        return chunked(self._image_tokens, images, self.chunks)[0]

    def _image_tokens(self, images: Tensor) -> tuple[Tensor]:
        tower: Any = self.image.trunk if isinstance(self.image, Projected) else self.image
        if hasattr(tower, "tokens"):
            return (at_least_float32(tower.tokens(self.pixels(images))),)
        return (at_least_float32(self.image(self.pixels(images))[0])[:, None],)

    def text_tokens(self, tokens: Tensor) -> Tensor:
        """Encode int64 (U, L) to (U, L, width) with a tower that has ``tokens``."""
        if self.text is None:
            raise UniclError(NO_TOWER, "set model.text, or use a loss on images alone: ce, supcon")
        plain = read_marks(tokens)[0] if self.has_kind_heads else tokens
        return at_least_float32(cast("Any", self.text).trunk.tokens(plain))

    def scale(self, name: str = "text") -> Tensor:
        """Return exp(logit_scale), the factor on cosines, as a () tensor; the same for every ``name``."""
        del name
        return self.logit_scale.exp().squeeze(0)

    def after_step(self) -> None:
        """Cap the scale. A clamp in `forward` would have gradient 0 at the bound, and the scale would stay there."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=self.max_log_scale)
