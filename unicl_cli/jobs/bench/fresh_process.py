"""A process of its own for one variant's peak memory, or one of several that measure a row together.

python -m unicl_cli.jobs.bench.fresh_process '{"asked": …, "row": …, "variant": …}'
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
from unicl_cli.jobs.bench.cases import cases_of
from unicl_cli.jobs.bench.kinds import KINDS, Asked
from unicl_cli.jobs.bench.protocol import Case, contest, device_of
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.process import end_worker

STATUS = Path("/proc/self/status")


def peak() -> float:
    """MiB: the most this process has held since it began, or since `forget_peak`."""
    if STATUS.is_file():  # `ru_maxrss` counts what the parent held before this program began, too
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """What was freed goes back to the machine, and the peak falls to what is held now (Linux alone can do that)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_of(work: Callable[[], Any]) -> float:
    """MiB that ``work`` takes above what was held before."""
    x = torch.randn(64, 64, requires_grad=True)  # libraries take their buffers when first used
    (x @ x).logsumexp(1).sum().backward()
    forget_peak()
    held = peak()
    work()
    return peak() - held


def memory(case: Case, variant: str) -> float:
    ready = case.prepare((variant,))
    run = ready.runs[variant]

    def work() -> None:
        for _ in range(case.memory):
            run()

    return peak_of(work)


def main() -> None:
    job: dict[str, Any] = json.loads(sys.argv[1])
    asked, variant = Asked.of(job["asked"]), job["variant"]
    torch.set_num_threads(asked.threads)
    (case,) = (case for case in cases_of(asked) if case.name == job["row"])
    accelerator = start_accelerator(devices="cpu") if case.processes > 1 else None
    if variant is not None:
        found: Any = memory(case, variant)
    else:
        rounds = asked.rounds or KINDS[asked.kind].rounds
        found = contest(case, case.prepare(case.who), rounds=rounds, device=device_of(asked), advance=lambda _: None)
    if rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    if accelerator is not None:
        accelerator.end_training()
        end_worker(0)


if __name__ == "__main__":
    main()
