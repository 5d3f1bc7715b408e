"""Device tensors that keep a host copy, so that reading their values never waits for the GPU."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor

T = TypeVar("T")
HOST = "host"
"""Attribute of a device tensor: the same numbers on the host."""


def to_device(batch: T, device: Any) -> T:
    """Move a NamedTuple of (nested) tensors without waiting; its ``tokens`` keep their copy on the host.

    Tensors that are on the device already stay as they are.
    """
    moved = cast("T", send_to_device(batch, device, non_blocking=True))
    here, there = getattr(batch, "tokens", None), getattr(moved, "tokens", None)
    if isinstance(here, Tensor) and here.device.type == "cpu" and there is not here:
        setattr(there, HOST, here)
    return moved


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device without waiting.

    To a GPU it goes from pinned memory: a copy from any other may wait until the GPU has worked off its queue.
    """
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def host_copy(x: Tensor) -> Tensor | None:
    """Return the numbers of ``x`` that the host can read at once; None if it has none, and while a graph is traced."""
    known = x if x.device.type == "cpu" else getattr(x, HOST, None)
    return known if type(known) is Tensor else None


def split_rows(x: Tensor, count: int) -> Sequence[Tensor]:
    """Split (n, …) into ``count`` parts, each with its host copy; if rows are too few, the last one is repeated."""
    short = max(0, count - len(x))
    parts = (torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short else x).tensor_split(count)
    known = getattr(x, HOST, None)
    for part, own in zip(parts, split_rows(known, count), strict=True) if known is not None else ():
        setattr(part, HOST, own)
    return parts
