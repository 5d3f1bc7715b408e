"""Caption prediction: a text word by word from its image (CLIP, section 2.3, Fig. 2; VirTex, CVPR 2021, section 3)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_captioner.decoder import Decoder
from unicl_captioner.prompts import Tree, build_trees, score_tree
from unicl_captioner.search import Caption, write_captions
from unicl_cli.api import NO_TEXT, Batch, Drawn, Model, UniclError, chunked, seed_of, share_of_mean

SALT = 71
HIDDEN = "image_hidden"
"""The column of rows whose image is hidden from the decoder, bool (b,)."""


def hide_images(drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, share: float) -> dict[str, Tensor]:
    """Draw the rows whose image is hidden, each from (seed, draw)."""
    del tokens, text_index
    coins = [torch.Generator().manual_seed(seed_of(one.seed, one.draw, SALT)) for one in drawn]
    return {HIDDEN: torch.stack([torch.rand((), generator=coin) < share for coin in coins])}


def real_targets(tokens: Tensor, end: int) -> Tensor:
    """Return which places of ``tokens[:, 1:]`` are words or the first end: int64 (b, L) -> bool (b, L - 1).

    By place and not by id: the padding of CLIP's tokenizer is also the id of "!".
    """
    before = (tokens[:, 1:-1] == end).cumsum(1) == 0
    return torch.cat([torch.ones_like(tokens[:, :1], dtype=torch.bool), before], 1)[:, : tokens.shape[1] - 1]


def word_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p of each next word, (b, L - 1), from logits (b, L - 1, V) and tokens (b, L)."""
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


class Captioner(nn.Module):
    """-log p(word | words before it, image): the mean over all real words and ends of the global batch.

    ``ends`` are the ids that begin and end a text. With ``drop_image`` a learned vector stands for the tokens of a
    hidden image, so that the decoder also learns p(text) alone.
    """

    score, activation = "pair", "softmax"

    def __init__(
        self,
        decoder: Decoder,
        ends: tuple[int, int],
        *,
        chunks: int,
        length: str,
        drop_image: float,
        prior: float,
        many_prompts: bool,
    ) -> None:
        super().__init__()
        if prior and not drop_image:
            raise UniclError(
                f"loss.prior: {prior:g} needs p(text) without an image, which this training does not learn",
                "set loss.drop_image=0.1, or loss.prior=0",
            )
        self.decoder, self.ends, self.chunks = decoder, ends, chunks
        self.length, self.prior, self.many_prompts = length, prior, many_prompts
        self.trees: tuple[Tensor, list[Tree]] | None = None
        if drop_image:
            self.nothing = nn.Parameter(0.02 * torch.randn(decoder.token_width))
            self.extra = partial(hide_images, share=drop_image)

    def look(self, model: Model, images: Tensor) -> Tensor:
        """Return the tokens of images, (b, N, token_width); a model without any has one, its pooled output."""
        found: Any = getattr(model, "image_tokens", None)
        return model.encode_image(images).pooled[:, None] if found is None else found(images)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        image = self.look(model, batch.images)
        if hasattr(self, "nothing"):
            image = torch.where(batch.extra[HIDDEN][:, None, None], self.nothing.to(image.dtype), image)
        tokens = batch.tokens[batch.text_index]  # a row without text reads the last one and is not counted
        real = real_targets(tokens, self.ends[1]) & (batch.text_index != NO_TEXT)[:, None]

        def run(rows: Tensor) -> tuple[Tensor]:
            states = self.decoder(tokens[rows, :-1], image[rows])
            return (word_losses(self.decoder.logits(states), tokens[rows]),)

        (each,) = chunked(run, torch.arange(len(tokens), device=tokens.device), self.chunks)
        return {"loss": share_of_mean(each, real), "words": real.sum(1).to(each.dtype).mean()}

    def pair_scores(self, model: Model, images: Tensor, tokens: Tensor) -> Tensor:
        """Score images with prompts: (b, P), log p(prompt | image) or its mean over tokens, less the prior's share.

        An image is encoded once, and so are its keys and values and each beginning that prompts share. With ``prior``
        1 the score is the information gain of Information Gain captioners.
        """
        image = self.look(model, images)
        if self.prior:  # p(text) is that of one more image, which is hidden
            image = torch.cat([image, self.nothing.to(image.dtype).expand(1, *image.shape[1:])])
        caches = self.decoder.caches(keeps_words=False)
        scores = image.new_empty(len(image), len(tokens))
        for tree in self.trees_of(tokens):
            scores[:, tree.prompts] = score_tree(self.decoder, image, tree, caches).to(scores.dtype)
        if self.length == "mean":
            scores = scores / real_targets(tokens, self.ends[1]).sum(1)
        return scores[: len(images)] - self.prior * scores[-1:] if self.prior else scores

    def trees_of(self, tokens: Tensor) -> list[Tree]:
        """Return the trees of prompts, int64 (P, L); those of the last call are kept for the next batch of images."""
        known = self.trees
        if known is None or known[0].device != tokens.device or not torch.equal(known[0], tokens):
            known = self.trees = tokens, build_trees(tokens, self.ends[1])
        return known[1]

    def write(self, model: Model, images: Tensor, beams: int = 1) -> list[Caption]:
        """Write a caption for each of uint8 images (b, 3, H, W): greedy, or the best of ``beams`` beginnings."""
        with torch.no_grad():
            return write_captions(self.decoder, self.look(model, images), self.ends, beams)
