"""The measuring protocol: variants take turns in one process after warm-ups, and ratios are taken per round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache

from unicl_cli.core.dist import largest_over_ranks, world_size
from unicl_cli.core.memory import is_out_of_memory
from unicl_cli.errors import UniclError
from unicl_cli.jobs.bench.kinds import Request

PLAIN_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Makes glibc return each freed tensor; otherwise the peak depends on holes in its heap."""
WARM_UPS = 2
LONG, LONGEST = 10.0, 60.0
"""Runs longer than LONG seconds need only one warm-up; the first run of LONGEST or more is the first round's."""
SHORT, MOST_REPEATS = 0.02, 100
"""Runs shorter than SHORT seconds are repeated within a round, at most MOST_REPEATS times."""
OUT_OF_MEMORY = "out of memory"
"""The reason of a variant that was skipped because its run did not fit."""
FORWARD, GRADIENTS, LEVELS = 1e-5, 1e-4, 1.0
"""Largest allowed differences: outputs (absolute), gradients (relative), pixels (levels of 255)."""
Run = Callable[[], Any]
Timer = Callable[[Run], float]


class PreparedCase(NamedTuple):
    """A case that is ready to run: each call of one of ``runs`` processes ``items`` items of the case's unit.

    ``check`` returns the largest differences (``forward``, ``gradients``) and any other value worth reporting.
    ``timer`` replaces this process's clock; ``skipped`` maps a variant that cannot run to the reason.
    """

    items: float
    runs: Mapping[str, Run]
    facts: Mapping[str, Any] = {}
    check: Callable[[], Mapping[str, float]] | None = None
    timer: Timer | None = None
    skipped: Mapping[str, str] = {}


class Case(NamedTuple):
    """One row of the table. ``prepare(variants)`` builds those variants; ratios are relative to ``reference``.

    ``memory`` is the number of runs in a fresh process while its peak is measured (0: not measured there).
    An ``extra`` row runs only if it is named, or with --all.
    """

    name: str
    unit: str
    variants: tuple[str, ...]
    reference: str
    prepare: Callable[[Collection[str]], PreparedCase]
    memory: int = 0
    processes: int = 1
    extra: bool = False


class Limits(NamedTuple):
    """Upper limits for the results of a check."""

    forward: float = FORWARD
    gradients: float = GRADIENTS
    levels: float = LEVELS


def choose_device(request: Request) -> torch.device:
    """Return the device of a benchmark in one process."""
    gpu = request.devices in ("auto", "1") and torch.cuda.is_available()
    if not gpu and request.devices not in ("auto", "cpu", "cpu:1"):
        raise UniclError(f"--devices {request.devices}: not a device for benchmarks", "use auto or cpu")
    return torch.device("cuda" if gpu else "cpu")


def choose_timer(device: torch.device) -> Timer:
    """Return the clock: CPU seconds of this process, or the seconds between two events on the GPU."""
    return _cuda_seconds if device.type == "cuda" else _cpu_seconds


def _cpu_seconds(run: Run) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def _cuda_seconds(run: Run) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


WALL = "wall time"
"""The clock of a row whose work is done by several processes."""


def wall_seconds(run: Run) -> float:
    """Return the elapsed seconds of a run that waits for other processes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def run_check(name: str, prepared: PreparedCase, limits: Limits = Limits()) -> dict[str, float]:  # noqa: B008 - frozen
    """Return the results of the row's check. Raise UniclError (exit code 1) if the variants' results differ."""
    figures = dict(prepared.check()) if prepared.check is not None else {}
    for what, most in limits._asdict().items():
        apart = figures.get(what, 0.0)
        if not apart <= most:  # nan too
            raise UniclError(
                f"{name}: not compared: {what} differs by {apart:.1e}; the limit is {most:.0e}",
                "report this with the output of `unicl doctor --json`: the variants compute different results",
                exit_code=1,
            )
    return figures


class Turns:
    """The runs of a case's variants, alternating. One that runs out of memory is skipped from then on."""

    def __init__(self, prepared: PreparedCase, device: torch.device, advance: Callable[[int], None]) -> None:
        self.prepared, self.device, self.advance = prepared, device, advance
        self.timer = prepared.timer or choose_timer(device)
        self.runs: dict[str, list[Timing]] = {name: [] for name in prepared.runs}
        self.skipped = dict(prepared.skipped)
        self.took = dict.fromkeys(prepared.runs, 0.0)

    def time(self, name: str, times: int = 1) -> Timing | None:
        """Measure one turn of a variant; None if it has run out of memory, now or before."""
        self.advance(1)
        if name not in self.runs:
            return None
        try:
            return time_runs(self.timer, self.prepared.runs[name], self.device, times)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or world_size() > 1:
                raise
        self.skipped[name] = OUT_OF_MEMORY
        del self.runs[name]
        clear_device_cache(garbage_collection=True)
        return None

    def warm_up(self) -> None:
        """Run every variant twice, or once if a run is long; a run of a minute is the first round's."""
        for _ in range(WARM_UPS):
            for name in self.prepared.runs:
                if self.took[name] >= LONG:
                    self.advance(1)
                    continue
                measured = self.time(name)
                if measured is not None:  # every rank repeats equally often
                    self.took[name] = largest_over_ranks(round(measured.seconds * 1e6)) / 1e6
                    self.runs[name] = [measured] if self.took[name] >= LONGEST else []

    def measure(self, number: int, name: str) -> None:
        """Measure a variant's turn in round ``number``, unless a warm-up was it."""
        if len(self.runs.get(name, ())) > number:
            self.advance(1)
            return
        measured = self.time(name, 1 if self.prepared.timer else repeats_per_round(self.took[name]))
        if measured is not None:
            self.runs[name].append(measured)


def measure_case(
    case: Case, prepared: PreparedCase, *, rounds: int, device: torch.device, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Return the row of the document: after warm-ups, each round runs every variant once, rotating which goes first."""
    checks = run_check(case.name, prepared)
    turns, names = Turns(prepared, device, advance), list(prepared.runs)
    turns.warm_up()
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            turns.measure(number, name)
    return {
        "name": case.name,
        "unit": case.unit,
        "count": prepared.items,
        "facts": dict(prepared.facts),
        "checks": checks,
        "reference": case.reference,
        "variants": {name: timing_figures(prepared.items, runs) for name, runs in turns.runs.items()},
        "skipped": turns.skipped,
    }


def repeats_per_round(seconds: float) -> int:
    """Return the number of runs per round, enough to make the clock's resolution negligible."""
    return max(1, min(MOST_REPEATS, round(SHORT / max(seconds, 1e-6))))


class Timing(NamedTuple):
    """Seconds of one run, and its peak memory in MiB where the GPU's allocator reports it."""

    seconds: float
    mib: float | None


def time_runs(timer: Timer, run: Run, device: torch.device, times: int = 1) -> Timing:
    """Measure ``times`` runs in a row and return the mean of one."""
    work = partial(run_repeatedly, run, times)
    if device.type != "cuda":
        return Timing(timer(work) / times, None)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    seconds = timer(work) / times
    return Timing(seconds, (torch.cuda.max_memory_allocated() - held) / 2**20)


def run_repeatedly(run: Run, times: int) -> Any:
    """Call ``run`` several times and return its last result."""
    for _ in range(times - 1):
        run()
    return run()


def timing_figures(count: float, runs: Sequence[Timing]) -> dict[str, Any]:
    """Return the results of one variant: seconds of each round, their median, items per second, peak memory."""
    median = statistics.median(run.seconds for run in runs)
    mib = max((run.mib for run in runs if run.mib is not None), default=None)
    seconds = [run.seconds for run in runs]
    return {"seconds": seconds, "median_s": median, "per_s": count / max(median, 1e-12), "mib": mib}


def add_ratios(row: dict[str, Any]) -> dict[str, Any]:
    """Add ``speed`` (ratio to the reference, per round) and ``memory`` (share of the reference's) to each variant."""
    base = row["variants"].get(row["reference"])
    if base is None:
        return row
    for own in row["variants"].values():
        ratios = [b / max(a, 1e-12) for a, b in zip(own["seconds"], base["seconds"], strict=True)]
        own["speed"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        if own["mib"] is not None and base["mib"]:
            own["memory"] = own["mib"] / base["mib"]
    return row


@cache
def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def measure_in_fresh_process(request: Request, row: str, variant: str | None, processes: int = 1) -> Any:
    """Measure in a fresh process, or in several connected ones.

    Return the peak memory of ``variant`` in MiB, or the whole row if ``variant`` is None.
    """
    job = json.dumps({"request": request._asdict(), "row": row, "variant": variant})
    launcher = ("torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m") if processes > 1 else ()
    command = [sys.executable, "-m", *launcher, "unicl_cli.jobs.bench.fresh_process", job]
    env = _environment(request.threads) | ({} if variant is None else PLAIN_HEAP)
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        why = lines[0] if lines else f"exit code {done.returncode}"
        raise UniclError(f"{row}: the fresh process for {variant or 'this row'} failed: {why}", exit_code=1)
    return json.loads(done.stdout.splitlines()[-1])
