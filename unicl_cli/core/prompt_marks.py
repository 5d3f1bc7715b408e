"""The start token of prompts, and marks by which a model knows which texts are prompts."""

import torch
from torch import Tensor

from unicl_cli.core.host_copy import HOST
from unicl_cli.tower_contracts import Tokenizer


def start_prompts(tokens: Tensor, tokenizer: Tokenizer | None, rows: Tensor | slice = slice(None)) -> Tensor:
    """Replace the start token of ``rows`` of tokens, int64 (n, L), by that of prompts, in place; return all tokens."""
    if (first := getattr(tokenizer, "prompt_token", None)) is not None:
        tokens[rows, 0] = first
    if getattr(tokenizer, "marks_prompts", False):
        mark_prompts(tokens, rows)
    return tokens


def mark_prompts(tokens: Tensor, rows: Tensor | slice = slice(None)) -> None:
    """Mark ``rows`` of tokens, int64 (n, L), as prompts, in place: their first token t becomes -1 - t."""
    tokens[rows, 0] = ~tokens[rows, 0]


def read_marks(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens (n, L) without marks, with their host copy, and, bool (n, 1), True for prompts."""
    plain = torch.where(tokens < 0, ~tokens, tokens)
    if (known := getattr(tokens, HOST, None)) is not None:
        setattr(plain, HOST, read_marks(known)[0])
    return plain, tokens[:, :1] < 0
