"""A moving average of the weights, in the data type of the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unicl_cli.core.checkpoint import own_tensors
from unicl_cli.core.dist import shard_like


class Average:
    """The average of the trained parameters: ``decay × average + (1 - decay) × weights`` after each step.

    Frozen parameters and buffers are the module's own and take no memory here. With ``warmup`` the decay of step n is
    at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage with ``num_updates``: the first weights are
    soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool = False) -> None:
        self.module, self.decay, self.warmup = module, decay, warmup
        self.trained = {
            n: (value, value.detach().clone()) for n, value in own_tensors(module).items() if value.requires_grad
        }

    @property
    def values(self) -> dict[str, Tensor]:
        """Name -> tensor of the whole averaged model."""
        own = {name: value.detach() for name, value in own_tensors(self.module).items()}
        return own | {name: average for name, (_, average) in self.trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average once ``step`` steps are completed."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        for value, average in self.trained.values():
            average.lerp_(value, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the average from a checkpoint's full tensors."""
        for name, (_, average) in self.trained.items():
            average.copy_(shard_like(tensors[name].to(average.device), average))
