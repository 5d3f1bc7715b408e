"""Marks of prompts in tokens, by which a model with ``heads: kind`` tells them from captions."""

import torch
from torch import Tensor


def mark_prompts(tokens: Tensor, rows: Tensor | slice = slice(None)) -> None:
    """Mark ``rows`` of tokens, int64 (n, L), as prompts, in place: their first token t becomes -1 - t."""
    tokens[rows, 0] = ~tokens[rows, 0]


def read_marks(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens (n, L) without marks and, bool (n, 1), True for prompts."""
    return torch.where(tokens < 0, ~tokens, tokens), tokens[:, :1] < 0
