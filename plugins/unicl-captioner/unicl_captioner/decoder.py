"""A causal Transformer that reads words and looks at an image: the decoder of a captioner (CLIP 2021, section 2.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import UniclError, at_least_float32

Pair = tuple[Tensor, Tensor]
"""Keys and values, (rows, heads, length, width / heads) each."""


class Cache:
    """The keys and values that one block has computed: of the image, and of the words so far if it ``keeps_words``."""

    def __init__(self, *, keeps_words: bool) -> None:
        self.keeps_words = keeps_words
        self.image: Pair | None = None
        self.words: Pair | None = None

    def add_words(self, keys: Tensor, values: Tensor) -> Pair:
        """Return the keys and values of all words so far, these behind the earlier ones."""
        if self.words is not None:
            keys, values = (torch.cat(both, 2) for both in zip(self.words, (keys, values), strict=True))
        if self.keeps_words:
            self.words = keys, values
        return keys, values

    def take(self, rows: Tensor) -> None:
        """Continue with these of the rows, int64 (r,), in this order; a row may come back several times."""
        for name in ("image", "words"):
            kept: Pair | None = getattr(self, name)
            if kept is not None:
                setattr(self, name, (kept[0][rows], kept[1][rows]))


class Block(nn.Module):
    """Pre-norm causal self-attention, attention to the image's tokens, and MLP."""

    def __init__(self, width: int, heads: int, token_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_words, self.norm_query, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_image, self.kv = nn.LayerNorm(token_width), nn.Linear(token_width, 2 * width)
        self.query, self.look = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def split(self, x: Tensor, parts: int) -> Sequence[Tensor]:
        """Split (r, t, parts · width) into parts of (r, heads, t, width / heads)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, image: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
        """Map (r, t, width) to the same shape; ``image`` (r, N, token_width) is read unless the cache has it.

        ``mask`` bool (t, t): which words each word reads; None: itself and all before it.
        """
        queries, keys, values = self.split(self.qkv(self.norm_words(x)), 3)
        keys, values = cache.add_words(keys, values)
        is_causal = mask is None and queries.shape[2] == keys.shape[2]
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=is_causal)
        x = x + self.proj(read.transpose(1, 2).flatten(2))
        if cache.image is None:
            keys, values = self.split(self.kv(self.norm_image(image)), 2)
            cache.image = keys, values
        (queries,) = self.split(self.query(self.norm_query(x)), 1)
        x = x + self.look(F.scaled_dot_product_attention(queries, *cache.image).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm_mlp(x))))


class Decoder(nn.Module):
    """Token and position embeddings, blocks, a last norm; the output matrix is the token embedding."""

    def __init__(
        self, vocab_size: int, context_length: int, token_width: int, *, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise UniclError(f"loss: width {width} is not a multiple of heads {heads}", "change one of them")
        self.context_length, self.token_width = context_length, token_width
        self.tok = nn.Embedding(vocab_size, width)
        self.pos = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads, token_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tok.weight, std=0.02)
        nn.init.normal_(self.pos, std=0.01)

    @property
    def units(self) -> Sequence[nn.Module]:
        """The blocks, which FSDP2 shards one by one."""
        return list(self.blocks)

    def caches(self, *, keeps_words: bool) -> list[Cache]:
        return [Cache(keeps_words=keeps_words) for _ in self.blocks]

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        *,
        places: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Map int64 (r, t) and image tokens (r, N, token_width) to the states after the last norm, (r, t, width).

        ``places`` int64 (t,): the place of each token in its text; None: 0, 1, 2, …
        """
        x = self.tok(tokens) + (self.pos[: tokens.shape[1]] if places is None else self.pos[places])
        for block, cache in zip(self.blocks, caches or self.caches(keeps_words=False), strict=True):
            x = block(x, image, cache, mask)
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of the next word, (…, vocab_size), in float32 or better under autocast too."""
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(at_least_float32(states), at_least_float32(self.tok.weight))
