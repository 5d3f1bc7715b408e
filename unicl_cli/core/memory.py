"""The memory of a process: how much its tensors may take, how much they took, and the errors that say it is full."""

import os
import sys
from pathlib import Path

import torch

FULL = (
    *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "could not create a primitive"),
    "Resource temporarily unavailable",
)
"""How those that have no error of their own say it: allocators of the CPU and of Apple's chips, oneDNN, new threads."""


def is_out_of_memory(error: BaseException) -> bool:
    """Did something ask for more memory than there is?"""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def memory_limit(device: torch.device) -> int | None:
    """Bytes: all of a GPU, or what ``ulimit -v`` has left; None where an allocation hardly ever fails (most CPUs)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else max(1, limit - _pages(0))


def memory_used(device: torch.device) -> float:
    """Bytes: on a GPU the most that tensors held since the last call, else what the process holds now; 0 if unknown."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(most)
    if device.type == "mps":
        return float(torch.mps.driver_allocated_memory())
    return float(_pages(1))


def _pages(column: int) -> int:
    """Bytes that this process has mapped (0) or holds (1); 0 where Linux does not say."""
    try:
        count = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[column])
    except (OSError, ValueError, IndexError):
        return 0
    return count * os.sysconf("SC_PAGE_SIZE")
