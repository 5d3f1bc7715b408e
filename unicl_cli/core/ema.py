"""A moving average of the weights, in float32 at least."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unicl_cli.core.checkpoint import own_tensors
from unicl_cli.core.dist import shard_like


class Average:
    """``average = decay × average + (1 - decay) × weights`` after each step; buffers and integers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values: dict[str, Tensor] = {name: value.detach().clone() for name, value in own_tensors(module).items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, value in own_tensors(self.module).items():
            if value.requires_grad:
                self.values[name].lerp_(value, 1 - self.decay)
            else:
                self.values[name].copy_(value)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """From a checkpoint's full tensors."""
        for name, value in self.values.items():
            value.copy_(shard_like(tensors[name].to(value.device), value))
