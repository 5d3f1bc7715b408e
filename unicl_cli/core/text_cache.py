"""A cache of text vectors for a frozen tower: each text is encoded once and looked up afterwards."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unicl_cli.core.dist import any_rank
from unicl_cli.core.host_copy import host_copy, send
from unicl_cli.core.towers import traits_of

ROWS, STEP = 64, 8
"""Texts that a GPU encodes at once, and the multiple that their length is rounded up to."""


class New(NamedTuple):
    """Texts of one shape that have not been seen: their tokens on the host, and their names in the cache."""

    tokens: NDArray[np.int64]
    names: Sequence[bytes]


class TextCache:
    """int64 (U, L) tokens -> (U, D): the vectors that ``encode`` once gave for the texts.

    A vector must depend on its text alone: a resumed run meets the texts in another order and must be bit-equal. So
    texts are encoded in batches of one shape for each length. On a CPU they are encoded one by one, since the rounding
    of its matrix products depends on a row's position. Every rank encodes equally often, since FSDP2 gathers weights
    each time.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], pad_id: int, context_length: int | None) -> None:
        self.encode, self.pad_id, self.context_length = encode, pad_id, context_length
        self.places: dict[bytes, int] = {}
        self.vectors = torch.empty(0)

    def __call__(self, tokens: Tensor) -> Tensor:
        known = host_copy(tokens)
        ids = (tokens.cpu() if known is None else known).numpy()
        lengths = ((ids != self.pad_id) * np.arange(1, ids.shape[1] + 1)).max(1)
        names = [row[:length].tobytes() for row, length in zip(ids, lengths.tolist(), strict=True)]
        waiting = self.unseen(ids, lengths, names, 1 if tokens.device.type == "cpu" else ROWS)
        while any_rank(bool(waiting)):
            self.add(waiting.pop() if waiting else New(ids[:1], []), tokens.device)
        return self.vectors[send(torch.tensor([self.places[name] for name in names]), tokens.device)]

    def unseen(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], names: Sequence[bytes], rows: int
    ) -> list[New]:
        """Return the texts that are not in the cache yet, in batches of ``rows``.

        Each has at least one token of padding if the context leaves room for it, since padding may also end a text.
        """
        groups: dict[int, dict[bytes, int]] = {}
        for row, name in enumerate(names):
            if name not in self.places:
                length = int(lengths[row]) + 1 if rows == 1 else -(-(int(lengths[row]) + 1) // STEP) * STEP
                groups.setdefault(min(length, self.context_length or length), {}).setdefault(name, row)
        found: list[New] = []
        for length, group in groups.items():
            wide = np.full((len(ids), length), self.pad_id)
            wide[:, : min(length, ids.shape[1])] = ids[:, :length]
            for start in range(0, len(group), rows):
                part = dict(list(group.items())[start : start + rows])
                padding = [next(iter(part.values()))] * (rows - len(part))  # all batches have the same shape
                places = [*part.values(), *padding]
                found.append(New(wide[places], list(part)))
        return found

    @torch.no_grad()
    def add(self, new: New, device: torch.device) -> None:
        """Encode a batch and store the vectors of the texts that have a name."""
        vectors = self.encode(send(torch.from_numpy(new.tokens), device))[: len(new.names)]
        used = len(self.places)
        if used + len(vectors) > len(self.vectors):
            larger = vectors.new_empty(max(256, 2 * len(self.vectors)), vectors.shape[1])
            if used:
                larger[:used] = self.vectors[:used]
            self.vectors = larger
        self.vectors[used : used + len(vectors)] = vectors
        self.places |= {name: used + n for n, name in enumerate(new.names)}


def build_text_cache(tower: nn.Module, encode: Callable[[Tensor], Tensor]) -> TextCache | None:
    """Build the cache of a text tower; None for one that learns, has dropout, or whose vectors depend on padding."""
    traits = traits_of(tower)
    learns = tower.training or any(p.requires_grad for p in tower.parameters())
    if learns or not traits.trim_safe:
        return None
    return TextCache(encode, traits.pad_id, traits.context_length)
