"""The benchmark job: a request in; out comes one document with every row and the facts of the machine."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unicl_cli import __version__
from unicl_cli.core.machine import cores, machine_memory
from unicl_cli.inference.progress import progress
from unicl_cli.jobs.bench.cases import select_cases
from unicl_cli.jobs.bench.kinds import KINDS, Request
from unicl_cli.jobs.bench.protocol import (
    WARM_UPS,
    Case,
    add_ratios,
    choose_device,
    measure_case,
    measure_in_fresh_process,
)

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "scikit-learn", "pillow")


def run_benchmark(
    request: Request, argv: Sequence[str], save: Callable[[Mapping[str, Any]], None] = lambda document: None
) -> dict[str, Any]:
    """Run the benchmark and return its document; after Ctrl-C it holds the finished rows and ``complete`` is false.

    ``save`` gets the document before the first row and after each, so that a killed benchmark leaves what it measured.
    """
    device = choose_device(request)
    rounds = request.rounds or KINDS[request.kind].rounds
    document: dict[str, Any] = {
        "schema": "unicl/bench/1",
        "kind": request.kind,
        "command": shlex.join(["unicl", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(device),
        "versions": {"unicl": __version__} | {name: metadata.version(name) for name in PACKAGES},
        "device": device.type,
        "clock": "CUDA events" if device.type == "cuda" else "CPU time of the process",
        "threads": request.threads,
        "rounds": rounds,
        "rows": [],
        "complete": False,
    }
    with use_threads(request.threads):
        try:
            save(document)
            for row in measure_cases(request, select_cases(request), rounds, device):
                document["rows"].append(add_ratios(row))
                save(document)
            document["complete"] = True
        except KeyboardInterrupt:
            pass  # the finished rows are printed
    document["machine"]["load_after"] = load_average()
    return document


def measure_cases(
    request: Request, cases: Sequence[Case], rounds: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Measure one case after the other, with a fresh process for each peak memory on the CPU."""
    fresh_peaks = request.peak and device.type == "cpu"
    total = 0
    for case in cases:
        runs = WARM_UPS + rounds
        if fresh_peaks and case.memory:
            runs += 1
        total += len(case.variants) * runs
    with progress(f"bench {request.kind}", total) as advance:
        for case in cases:
            row = measure_row(request, case, rounds, device, advance)
            if fresh_peaks and case.memory:
                for name, own in row["variants"].items():
                    own["mib"] = measure_in_fresh_process(request, case.name, name, case.processes)
                    advance(1)
            yield row


def measure_row(
    request: Request, case: Case, rounds: int, device: torch.device, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Measure a row in this process, or start several for it."""
    if case.processes > 1:
        row: dict[str, Any] = measure_in_fresh_process(request, case.name, None, case.processes)
        advance(len(case.variants) * (WARM_UPS + rounds))
        return row
    return measure_case(case, case.prepare(case.variants), rounds=rounds, device=device, advance=advance)


@contextmanager
def use_threads(count: int) -> Generator[None]:
    """Set torch's number of threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Return processor, GPU, cores, memory and load of this machine."""
    return {
        "processor": processor_name(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cores": cores(),
        "memory_gib": round((machine_memory() or 0) / 2**30, 1),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_before": load_average(),
    }


def processor_name() -> str:
    """Return the processor's name as Linux reports it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def load_average() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)
