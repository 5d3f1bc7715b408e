"""The factory of SimCLR's loss: its options, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le

if TYPE_CHECKING:
    from torch import nn

Size = Annotated[int, Gt(0), Le(2**16)]


def build_simclr(
    *,
    image_width: int,
    temperature: Annotated[float, Ge(1e-6), Le(1e6)] = 0.1,
    normalize: bool = True,
    layers: Literal[0, 1, 2, 3] = 2,
    dim: Size = 128,
    batch_norm: bool = True,
    tile: Size | Literal["auto"] = "auto",
) -> nn.Module:
    """SimCLR on two views of each image, without labels and texts (ICML 2020, eq. 1); needs `data.views: 2`.

    ``layers`` and ``dim`` are those of the projection head: 2 as in the paper, 3 as in the authors' later code, 1
    linear, 0 none. ``batch_norm`` as published; without it, the weights do not depend on the number of CPU processes.
    ``normalize: false`` compares products instead of cosines. ``tile``: rows whose logits are held at once.
    """
    from unicl_simclr.loss import SimClr, build_head

    head = build_head(image_width, dim, layers, batch_norm=batch_norm)
    return SimClr(head, temperature, None if tile == "auto" else tile, normalize=normalize)
