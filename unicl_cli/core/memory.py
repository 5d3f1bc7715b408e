"""The memory of a process: its limit, its use, and the errors that say it is full."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from unicl_cli.errors import UniclError
from unicl_cli.formats import byte_size

MAX_TENSORS = 100_000
"""Tensors of a model; the largest published ones have some thousands."""

FULL = (
    *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "could not create a primitive"),
    "Resource temporarily unavailable",
)
"""Words of errors that have no dedicated exception class: allocators of CPUs and Apple chips, oneDNN, new threads."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


@contextmanager
def limit_modules(most: int | None) -> Generator[None]:
    """Raise UniclError once the modules that are built inside hold more than ``most`` bytes, or 100,000 tensors.

    A tensor is counted when its module registers it, before its first values are written and its memory is taken.
    """
    held: dict[str, int] = {"bytes": 0, "tensors": 0}

    def count(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        del module, name
        held["bytes"] += 0 if tensor is None else tensor.nbytes
        held["tensors"] += tensor is not None
        if (most is not None and held["bytes"] > most) or held["tensors"] > MAX_TENSORS:
            raise too_large_error(f"more than {byte_size(held['bytes'])} in {held['tensors']:,} tensors")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError) as error:
        if is_out_of_memory(error) or "overflow" in str(error):
            raise too_large_error(str(error).splitlines()[0]) from error
        raise
    finally:
        for hook in hooks:
            hook.remove()


def too_large_error(reason: str) -> UniclError:
    """Return the error for a model that does not fit into the memory of this machine."""
    return UniclError(
        f"model: its weights do not fit into the memory of this machine: {reason}",
        "lower the sizes of the towers: width, layers, embed_dim, model.context_length",
    )


def memory_limit(device: torch.device) -> int | None:
    """Return the bytes of a GPU, or those that ``ulimit -v`` leaves; None where allocations hardly ever fail (CPUs)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else max(1, limit - _process_bytes(0))


def memory_used(device: torch.device) -> float:
    """Return the most bytes that tensors held on a GPU since the last call, else those of the process; 0 if unknown."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(most)
    if device.type == "mps":
        return float(torch.mps.driver_allocated_memory())
    return float(_process_bytes(1))


def _process_bytes(column: int) -> int:
    """Return the bytes that this process has mapped (column 0) or holds (1); 0 if Linux does not say."""
    try:
        count = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[column])
    except (OSError, ValueError, IndexError):
        return 0
    return count * os.sysconf("SC_PAGE_SIZE")
