"""A joint model: cross-attention over the tokens of both towers, and a loss that scores pairs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import NO_TEXT, Batch, Features, at_least_float32, share_of_mean


class Cross(nn.Module):
    """Words attend to image cells: (n, L, width), (n, N, width), bool (n, L) of words -> (n,) logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, words: Tensor, cells: Tensor, there: Tensor) -> Tensor:
        seen = F.scaled_dot_product_attention(self.query(words), self.key(cells), self.value(cells))
        each = self.norm(words * seen).masked_fill(~there[..., None], 0)
        return at_least_float32(self.out(each.sum(1) / there.sum(1, keepdim=True))).squeeze(1)


class Joint(nn.Module):
    def __init__(self, image: nn.Module, text: nn.Module, pad_id: int, width: int) -> None:
        super().__init__()
        self.image, self.text, self.pad_id = image, text, pad_id
        self.cells, self.words = nn.Linear(image.width, width), nn.Linear(text.width, width)
        self.cross = Cross(width)
        self.units = [self.cross]
        self.embed_dim, self.image_width = width, image.width

    def image_tokens(self, images: Tensor) -> Tensor:
        return self.cells(self.image.tokens(images / 127.5 - 1))

    def text_tokens(self, tokens: Tensor) -> Tensor:
        return self.words(self.text.tokens(tokens))

    def pair(self, cells: Tensor, words: Tensor, there: Tensor) -> Tensor:
        return self.cross(words, cells, there)

    def encode_image(self, images: Tensor) -> Features:
        raise TypeError("a joint model has no image feature of its own")

    def encode_text(self, tokens: Tensor) -> Features:
        raise TypeError("a joint model has no text feature of its own")

    def scale(self, name: str = "text") -> Tensor:
        raise TypeError("a joint model has no scale")


class Align(nn.Module):
    score, activation = "pair", "sigmoid"

    def forward(self, model: Joint, batch: Batch) -> dict[str, Tensor]:
        cells = model.image_tokens(batch.images)  # (b, N, width)
        words = model.text_tokens(batch.tokens)[batch.text_index]  # (b, L, width)
        there = (batch.tokens != model.pad_id)[batch.text_index]
        other = torch.arange(len(cells), device=cells.device) ^ 1  # b is even
        right = model.pair(cells, words, there)
        wrong = model.pair(cells, words[other], there[other])
        has = batch.text_index != NO_TEXT
        differ = has[other] & (batch.keys != batch.keys[other])
        return {"loss": share_of_mean(F.softplus(-right), has) + share_of_mean(F.softplus(wrong), differ)}

    def pair_scores(self, model: Joint, images: Tensor, tokens: Tensor) -> Tensor:
        """Score images (b, 3, H, W) and texts (C, L): (b, C) logits."""
        cells, words, there = model.image_tokens(images), model.text_tokens(tokens), tokens != model.pad_id
        b, c = len(cells), len(words)
        scores = model.pair(cells.repeat_interleave(c, 0), words.repeat(b, 1, 1), there.repeat(b, 1))
        return scores.view(b, c)
