"""CLIP's text tower: a causal Transformer that reads the state at the end-of-text token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.encoders.packing import Layout, attend, embed_tokens, end_states, layout_of, padded_layout
from unicl_cli.errors import UniclError
from unicl_cli.tower_contracts import TowerTraits


class Block(nn.Module):
    """Pre-norm self-attention and MLP; names as in open_clip, with q, k, v in one matrix."""

    def __init__(self, width: int, heads: int, *, quick_gelu: bool, eps: float) -> None:
        super().__init__()
        self.heads, self.quick_gelu = heads, quick_gelu
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, layout: Layout, *, last: bool = False) -> Tensor:
        """Map (n, width) to the same shape; ``last``: to (U, width), as only the ends of texts are read after it."""
        mixed = attend(self.qkv(self.ln_1(x)), self.heads, layout, last=last)
        x = (end_states(x, layout) if last else x) + self.proj(mixed)
        hidden = self.fc1(self.ln_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
        return x + self.fc2(hidden)


class TextTransformer(nn.Module):
    """int64 (U, L <= context_length) -> (U, width) at the first ``eot_id`` (CLIP 2021, section 2.4).

    Under the causal mask no state depends on later tokens, so tokens after EOT may be cut off (``trim_safe``).
    Initialisation is CLIP's.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        eot_id: int,
        *,
        width: int,
        layers: int,
        heads: int,
        quick_gelu: bool,
        eps: float,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UniclError(f"transformer: width {width} is not a multiple of heads {heads}", "change one of them")
        self.width, self.eot_id, self.context_length = width, eot_id, context_length
        self.heads, self.quick_gelu = heads, quick_gelu
        self.traits = TowerTraits(trim_safe=True, packs=True, context_length=context_length)
        self.tok = nn.Embedding(vocab_size, width)
        self.pos = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads, quick_gelu=quick_gelu, eps=eps) for _ in range(layers))
        self.ln = nn.LayerNorm(width, eps)
        nn.init.normal_(self.tok.weight, std=0.02)
        nn.init.normal_(self.pos, std=0.01)
        for block in self.blocks:
            out = width**-0.5 * (2 * layers) ** -0.5
            for name, std in (("qkv", width**-0.5), ("proj", out), ("fc1", (2 * width) ** -0.5), ("fc2", out)):
                linear = getattr(block, name)
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    @property
    def units(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def tokens(self, tokens: Tensor) -> Tensor:
        """Map int64 (U, L) to the states after the last norm, (U, L, width)."""
        layout = padded_layout(tokens, self.eot_id)
        x = embed_tokens(tokens, self.tok, self.pos, layout)
        for block in self.blocks:
            x = block(x, layout)
        return self.ln(x).view(*tokens.shape, -1)

    def forward(self, tokens: Tensor) -> Tensor:
        layout = layout_of(tokens, self.eot_id) if self.traits.packs else padded_layout(tokens, self.eot_id)
        x = embed_tokens(tokens, self.tok, self.pos, layout)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, layout)
        x = self.ln(last(x, layout, last=True))
        return x if layout.order is None else x[layout.order]
