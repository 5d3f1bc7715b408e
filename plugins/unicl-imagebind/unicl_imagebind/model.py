"""The model: two towers of the core, and a tower, a head and a scale for each further modality."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import (
    NO_TEXT,
    Drawn,
    Features,
    LogitScale,
    MediaKind,
    TwoTower,
    UniclError,
    add_projection,
    at_least_float32,
    chunked,
    seed_of,
)
from unicl_imagebind.towers import Reader, media_tower

SALT = 23
PUBLISHED = {
    name: LogitScale(init=scale, learn=False)
    for name, scale in (("audio", 20.0), ("depth", 5.0), ("thermal", 10.0), ("imu", 5.0))
}
"""The factors on cosines of ImageBind, appendix B; another modality learns its own."""


class ImageBind(nn.Module):
    """Towers of images, texts and ``others`` into one space: unit vectors, whose scale stays apart (CVPR 2023).

    The caches of frozen towers are those of ``two``.
    """

    def __init__(
        self,
        two: nn.Module,
        towers: Mapping[str, nn.Module],
        scales: Mapping[str, LogitScale],
        *,
        chunks: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if not isinstance(two, TwoTower):
            raise UniclError("model.base: is not a model of an image and a text tower", "use open_clip or two_tower")
        self.two, self.chunks, self.others = two, chunks, tuple(towers)
        self.normalize, self.biased = two.normalize, two.biased
        self.towers = nn.ModuleDict({name: add_projection(tower, two.embed_dim) for name, tower in towers.items()})
        chosen = {name: scales.get(name, PUBLISHED.get(name, LogitScale())) for name in towers}
        self.logit_scales = nn.ParameterDict(
            {
                name: nn.Parameter(torch.full([1], math.log(scale.init)), requires_grad=scale.learn)
                for name, scale in chosen.items()
            }
        )
        self.max_log_scales = {name: math.log(scale.max) for name, scale in chosen.items()}
        self.embed_dim, self.image_width, self.text_width = two.embed_dim, two.image_width, two.text_width
        read = {name: media_tower(tower, name) for name, tower in towers.items()}
        self.media: tuple[MediaKind, ...] = tuple(tower.kind(name) for name, tower in read.items())
        readers = {name: tower.reader for name, tower in read.items()}
        self.extra = partial(read_modalities, readers=readers, dropout=dropout)
        setattr(self.extra, "reads_images", False)  # noqa: B010 - of images that are cached there are no pixels

    def encode_image(self, images: Tensor) -> Features:
        """Encode uint8 (b, 3, H, W) to pooled (b, image_width) and embed (b, embed_dim)."""
        return self.two.encode_image(images)

    def encode_frozen(self, images: Tensor) -> Tensor | None:
        """Return what the image tower gives if it is frozen, for the image cache."""
        return self.two.encode_frozen(images)

    def encode_text(self, tokens: Tensor) -> Features:
        """Encode int64 (U, L) to pooled (U, width) and embed (U, embed_dim)."""
        return self.two.encode_text(tokens)

    def encode_extra(self, name: str, x: Tensor) -> Features:
        """Encode media of a modality, (b, …), to pooled (b, width) and embed (b, embed_dim) of unit length."""

        def run(part: Tensor) -> tuple[Tensor, Tensor]:
            pooled, joint = map(at_least_float32, self.towers[name](part))
            return pooled, F.normalize(joint, dim=-1)

        return Features(*chunked(run, x, self.chunks))

    def scale(self, name: str = "text") -> Tensor:
        """Return the factor on cosines of images with a modality, a () tensor."""
        return self.two.scale() if name in ("image", "text") else self.logit_scales[name].exp().squeeze(0)

    def after_step(self) -> None:
        """Cap the scales."""
        self.two.after_step()
        with torch.no_grad():
            for name, scale in self.logit_scales.items():
                scale.clamp_(max=self.max_log_scales[name])

    @property
    def text(self) -> Any:
        """The text tower."""
        return self.two.text

    @property
    def bank(self) -> Any:
        """The text cache; None ends it."""
        return self.two.bank

    @bank.setter
    def bank(self, bank: Any) -> None:
        self.two.bank = bank

    def remember_texts(self) -> bool:
        """Start to encode each text only once in training; return False if the text tower cannot."""
        return self.two.remember_texts()


def read_modalities(
    drawn: Sequence[Drawn], _: Tensor, text_index: Tensor, *, readers: Mapping[str, Reader], dropout: float
) -> dict[str, Tensor]:
    """Return the media of a batch: for each name float32 (b, …), zeros where the bool column ``has_NAME`` is false.

    ``has_text`` is one of the columns. A row hides each of its modalities with the chance ``dropout``, but keeps one.
    UniclError with the row's key for media that cannot be used.
    """
    columns = [text_index != NO_TEXT, *(torch.tensor([name in one.media for one in drawn]) for name in readers)]
    has = torch.stack(columns, 1)
    if dropout:
        has &= torch.stack([keep_modalities(one, row, dropout) for one, row in zip(drawn, has, strict=True)])
    extra = {f"has_{name}": column for name, column in zip(("text", *readers), has.T.contiguous(), strict=True)}
    for name, reader in readers.items():
        extra[name] = torch.zeros(len(drawn), *reader.shape)
        for place in extra[f"has_{name}"].nonzero().flatten().tolist():
            try:
                extra[name][place] = reader(drawn[place].media[name])
            except UniclError as error:
                message = f"data.train: row '{drawn[place].key}': {name}: {error.message}"
                raise UniclError(message, "fix the file, or leave it out, and prepare the corpus again") from error
    return extra


def keep_modalities(one: Drawn, has: Tensor, dropout: float) -> Tensor:
    """Return the modalities that a row keeps, bool (names,), from (seed, draw) alone: one at least of those it has."""
    coins = torch.rand(len(has), generator=torch.Generator().manual_seed(seed_of(one.seed, one.draw, SALT)))
    own = coins.masked_fill(~has, -1)
    return (own >= dropout) | (own == own.max())
