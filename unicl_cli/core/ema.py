"""A moving average of the weights, in the data type of the weights."""

import contextlib
import math
from collections.abc import Generator, Mapping

import torch
from torch import Tensor, nn

from unicl_cli.core.checkpoint import own_tensors
from unicl_cli.core.dist import shard_like


def share_of_start(decay: float, steps: int, *, warmup: bool) -> float:
    """Return the share of the first weights in the average after ``steps`` updates: the product of their decays.

    With warm-up, update n keeps (1 + n) / (10 + n) until that exceeds ``decay``.
    """
    slow = min(steps, max(0, math.ceil((10 * decay - 1) / (1 - decay)) - 1)) if warmup else 0
    # the product of (1 + n) / (10 + n) for n = 1 … slow is (slow + 1)! 10! / (slow + 10)!
    warm = math.lgamma(slow + 2) + math.lgamma(11) - math.lgamma(slow + 11)
    return math.exp(warm + (steps - slow) * math.log(decay))


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

    @contextlib.contextmanager
    def in_place(self) -> Generator[None]:
        """Give the module the averaged weights, and its own back at the end, bit for bit; every rank must enter."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange weights and average, one tensor at a time: no second copy of the model is needed."""
        own_tensors(self.module)  # makes FSDP2 drop the weights that it has gathered: they would be the old ones
        for value, average in self.trained.values():
            kept = value.detach().clone()
            value.copy_(average)
            average.copy_(kept)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the average from a checkpoint's full tensors."""
        for name, (_, average) in self.trained.items():
            average.copy_(shard_like(tensors[name].to(average.device), average))
