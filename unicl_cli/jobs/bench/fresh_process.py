"""A process of its own for one variant's peak memory, or one of several that measure a row together.

python -m unicl_cli.jobs.bench.fresh_process '{"request": …, "row": …, "variant": …}'
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unicl_cli.core.dist import rank
from unicl_cli.jobs.bench.cases import select_cases
from unicl_cli.jobs.bench.kinds import KINDS, Request
from unicl_cli.jobs.bench.protocol import Case, choose_device, measure_case
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.process import end_worker

STATUS = Path("/proc/self/status")


def peak_memory() -> float:
    """MiB: the most this process has held since it began, or since `forget_peak`."""
    if STATUS.is_file():  # `ru_maxrss` counts what the parent held before this program began, too
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """What was freed goes back to the machine, and the peak falls to what is held now (Linux alone can do that)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_of_work(work: Callable[[], Any]) -> float:
    """MiB that ``work`` takes above what was held before."""
    x = torch.randn(64, 64, requires_grad=True)  # libraries take their buffers when first used
    (x @ x).logsumexp(1).sum().backward()
    reset_peak()
    held = peak_memory()
    work()
    return peak_memory() - held


def measure_memory(case: Case, variant: str) -> float:
    ready = case.prepare((variant,))
    run = ready.runs[variant]

    def work() -> None:
        for _ in range(case.memory):
            run()

    return peak_of_work(work)


def main() -> None:
    job: dict[str, Any] = json.loads(sys.argv[1])
    request, variant = Request.from_json(job["request"]), job["variant"]
    torch.set_num_threads(request.threads)
    (case,) = (case for case in select_cases(request) if case.name == job["row"])
    accelerator = start_accelerator(devices="cpu") if case.processes > 1 else None
    if variant is not None:
        found: Any = measure_memory(case, variant)
    else:
        rounds = request.rounds or KINDS[request.kind].rounds
        found = measure_case(
            case, case.prepare(case.variants), rounds=rounds, device=choose_device(request), advance=lambda _: None
        )
    if rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    if accelerator is not None:
        accelerator.end_training()
        end_worker(0)


if __name__ == "__main__":
    main()
