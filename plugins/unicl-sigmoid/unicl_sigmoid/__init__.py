"""The factory of the pairwise sigmoid loss: its options, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from unicl_cli.api import LabelSets


def build_sigmoid(*, label_sets: LabelSets | None, bias: float = -10.0) -> nn.Module:
    """Classify each pair by itself as matching or not (SigLIP); needs `model.logit_scale.init: 10`."""
    from unicl_sigmoid.loss import Sigmoid

    return Sigmoid(bias, label_sets)
