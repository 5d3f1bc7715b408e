"""CLIP's text tower: a causal Transformer that reads the state at the end-of-text token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.errors import UniclError


class Block(nn.Module):
    """Pre-norm self-attention and MLP; names as in open_clip, with q, k, v in one matrix."""

    def __init__(self, width: int, heads: int, *, quick_gelu: bool, eps: float) -> None:
        super().__init__()
        self.heads, self.quick_gelu = heads, quick_gelu
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(U, L, width) -> the same."""
        q, k, v = self.qkv(self.ln_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (U, heads, L, d)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        hidden = self.fc1(self.ln_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
        return x + self.fc2(hidden)


class TextTransformer(nn.Module):
    """int64 (U, L <= context_length) -> (U, width) at the first ``eot_id`` (CLIP 2021, section 2.4).

    The causal mask lets no state see what follows it, so tokens after EOT may be cut off (``trim_safe``).
    Initialisation is CLIP's.
    """

    trim_safe = True

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
            raise UniclError(f"transformer: width {width} is no multiple of heads {heads}", "change one of them")
        self.width, self.eot_id = width, eot_id
        self.heads, self.quick_gelu = heads, quick_gelu
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
        """int64 (U, L) -> (U, L, width), after the last norm."""
        x = self.tok(tokens) + self.pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln(x)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        eot = (tokens == self.eot_id).int().argmax(1)  # the first maximum
        return x[torch.arange(x.shape[0], device=x.device), eot]  # `len` would fix the batch size of an ONNX export
