"""Profile of a run: the operations that take its time, and the places at which the host waits for the GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SHOWN = 15
"""Operations of a profile, by the time that they take themselves."""
WAIT = "called a synchronizing CUDA operation"
"""The words of torch's warning for an operation that waits for the GPU."""


def profile_run(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the operations of one run that take the most time themselves, on the GPU where there is one."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        run()
        if cuda:
            torch.cuda.synchronize()
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows: list[Any] = sorted(found.key_averages(), key=lambda row: -getattr(row, own))
    whole = sum(getattr(row, own) for row in rows) or 1
    return [
        {"name": row.key, "calls": row.count, "ms": getattr(row, own) / 1000, "share": getattr(row, own) / whole}
        for row in rows[:SHOWN]
    ]


@contextmanager
def count_waits(device: torch.device) -> Generator[list[str]]:
    """Collect the places at which the host waits for ``device`` inside the context, by torch's own report.

    Waits for an event are not among them: those are chosen, one step late. On a CPU nothing waits.
    """
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{each.filename}:{each.lineno}" for each in seen if WAIT in str(each.message)]
