"""Fresh processes: one measures the peak memory of a variant, or several measure a row together.

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
    """Return the peak memory of this process in MiB, since its start or the last `reset_peak`."""
    if STATUS.is_file():  # unlike VmHWM, `ru_maxrss` includes what the parent held before exec
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """Return freed memory to the machine and reset the peak to what is held now (on Linux only)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_of_work(work: Callable[[], Any]) -> float:
    """Return the MiB that ``work`` takes above what was held before."""
    x = torch.randn(64, 64, requires_grad=True)  # libraries allocate their buffers at first use
    (x @ x).logsumexp(1).sum().backward()
    reset_peak()
    held = peak_memory()
    work()
    return peak_memory() - held


def measure_memory(case: Case, variant: str) -> float:
    """Return the peak memory in MiB of ``case.memory`` runs of a variant."""
    run = case.prepare((variant,)).runs[variant]

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
