"""The factory of the pairwise sigmoid loss: its options, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def build_sigmoid(*, bias: float = -10.0) -> nn.Module:
    """Each pair for itself: does this text belong to this image? Wants `model.logit_scale.init: 10` (SigLIP)."""
    from unicl_sigmoid.loss import Sigmoid

    return Sigmoid(bias)
