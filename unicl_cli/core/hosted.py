"""Tensors on a device that remember their copy on the host, so that shapes which depend on them cost no wait."""

from typing import Any

from accelerate.utils import send_to_device
from torch import Tensor

HOST = "host"
"""Attribute of a tensor on a device: the same numbers on the host."""


def to_device(batch: Any, device: Any) -> Any:
    """A NamedTuple of tensors and what holds them, moved without waiting; ``tokens`` keep their copy on the host."""
    moved = send_to_device(batch, device, non_blocking=True)
    tokens = getattr(moved, "tokens", None)
    if isinstance(tokens, Tensor) and tokens.device.type != "cpu":
        setattr(tokens, HOST, batch.tokens)
    return moved


def on_host(x: Tensor) -> Tensor | None:
    """The numbers of ``x`` where the host can read them at once; None on a device, and while a graph is traced."""
    known = x if x.device.type == "cpu" else getattr(x, HOST, None)
    return known if type(known) is Tensor else None
