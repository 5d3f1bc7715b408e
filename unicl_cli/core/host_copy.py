"""Tensors on a device that remember their copy on the host, so that shapes which depend on them cost no wait."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor

T = TypeVar("T")
HOST = "host"
"""Attribute of a tensor on a device: the same numbers on the host."""


def to_device(batch: T, device: Any) -> T:
    """A NamedTuple of tensors and what holds them, moved without waiting; its ``tokens`` keep their copy on the host.

    What is there already stays as it is.
    """
    moved = cast("T", send_to_device(batch, device, non_blocking=True))
    here, there = getattr(batch, "tokens", None), getattr(moved, "tokens", None)
    if isinstance(here, Tensor) and here.device.type == "cpu" and there is not here:
        setattr(there, HOST, here)
    return moved


def host_copy(x: Tensor) -> Tensor | None:
    """The numbers of ``x`` where the host can read them at once; None on a device, and while a graph is traced."""
    known = x if x.device.type == "cpu" else getattr(x, HOST, None)
    return known if type(known) is Tensor else None


def split_rows(x: Tensor, count: int) -> Sequence[Tensor]:
    """(n, …) in ``count`` parts, each with its copy on the host; fewer rows than parts: the last one is repeated."""
    short = max(0, count - len(x))
    parts = (torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short else x).tensor_split(count)
    known = getattr(x, HOST, None)
    for part, own in zip(parts, split_rows(known, count), strict=True) if known is not None else ():
        setattr(part, HOST, own)
    return parts
