"""torch's MultiheadAttention with its two products as Linear layers, so that adapters can be added, and back."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def can_split(module: nn.Module) -> bool:
    """Return True for an attention with queries, keys and values from one matrix and nothing appended to the keys."""
    attention: Any = module
    if type(module) is not nn.MultiheadAttention:
        return False
    return attention.in_proj_weight is not None and attention.bias_k is None and not attention.add_zero_attn


class SplitAttention(nn.Module):
    """nn.MultiheadAttention from the same parameters, with the same output, as layers ``in_proj`` and ``out_proj``.

    torch's own module passes the weights of both to one function, so it never calls an adapter in place of its
    ``out_proj``. This one returns no attention weights and takes no padding mask.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        width, biased = attention.embed_dim, attention.in_proj_bias is not None
        self.width, self.heads, self.dropout = width, attention.num_heads, attention.dropout
        self.batch_first = attention.batch_first
        self.in_proj = nn.Linear(width, 3 * width, bias=biased, device="meta")
        self.out_proj = nn.Linear(width, width, bias=biased, device="meta")
        self.in_proj.weight, self.out_proj.weight = attention.in_proj_weight, attention.out_proj.weight
        if biased:
            self.in_proj.bias, self.out_proj.bias = attention.in_proj_bias, attention.out_proj.bias
        self.train(attention.training)

    def to_torch(self) -> nn.MultiheadAttention:
        """Return torch's module with the same parameters."""
        inner: Any = self.in_proj
        biased = inner.bias is not None
        whole: Any = nn.MultiheadAttention(
            self.width, self.heads, self.dropout, bias=biased, batch_first=self.batch_first, device="meta"
        )
        whole.in_proj_weight, whole.out_proj.weight = inner.weight, self.out_proj.weight
        if biased:
            whole.in_proj_bias, whole.out_proj.bias = inner.bias, self.out_proj.bias
        return whole.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,  # noqa: FBT001, FBT002 - torch's signature
        attn_mask: Tensor | None = None,
        is_causal: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[Tensor, None]:
        """Map (n, L, width), or (L, n, width) without ``batch_first``, to the same shape; return no weights."""
        if key_padding_mask is not None or need_weights:
            raise ValueError("an attention with adapters gives no attention weights and takes no padding mask")
        whole = self.in_proj(key).chunk(3, dim=-1)
        if query is key and key is value:
            mixed = whole
        else:  # each from its own input; the other two thirds of a product are not used
            others = whole if key is value else self.in_proj(value).chunk(3, dim=-1)
            mixed = (self.in_proj(query).chunk(3, dim=-1)[0], whole[1], others[2])
        rows = mixed if self.batch_first else tuple(x.transpose(0, 1) for x in mixed)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in rows)
        mask = None if is_causal else attn_mask
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask  # torch's module hides True, its function hides False
        if mask is not None and mask.ndim == 3:
            mask = mask.view(-1, self.heads, *mask.shape[1:])
        drop = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, is_causal=is_causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None
