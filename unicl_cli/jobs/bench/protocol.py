"""The protocol: what is compared takes turns in one process, after warm-ups; ratios are made round by round."""

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

from unicl_cli.core.dist import largest_over_ranks
from unicl_cli.errors import UniclError
from unicl_cli.jobs.bench.kinds import Request

WARM_UPS = 2
LONG, LONGEST = 10.0, 60.0
"""Seconds of a run after which one warm-up is enough, and after which the first run counts as the first round's."""
SHORT, MOST_REPEATS = 0.02, 100
FORWARD, GRADIENTS, LEVELS = 1e-5, 1e-4, 1.0
"""How far outputs, gradients relative to their size, and pixels (of 255) may be apart."""
Run = Callable[[], Any]
Timer = Callable[[Run], float]


class Prepared(NamedTuple):
    """What can be run: ``things`` (of the case's unit) each time, by everyone in ``runs``.

    ``check`` gives the largest differences, ``forward`` and ``gradients``, and whatever else is worth a figure.
    ``timer`` is for runs that are not measured by this process's clock; ``skipped`` says who does not run, and why.
    """

    count: float
    runs: Mapping[str, Run]
    facts: Mapping[str, Any] = {}
    check: Callable[[], Mapping[str, float]] | None = None
    timer: Timer | None = None
    skipped: Mapping[str, str] = {}


class Case(NamedTuple):
    """A row of the table. ``prepare(who)`` builds what those need; ratios are against ``reference``.

    ``memory`` is how often a fresh process runs each one while its peak is measured (0: not measured there). An
    ``extra`` row runs when it is named, or with --all.
    """

    name: str
    unit: str
    variants: tuple[str, ...]
    reference: str
    prepare: Callable[[Collection[str]], Prepared]
    memory: int = 0
    processes: int = 1
    extra: bool = False


class Limits(NamedTuple):
    """The most that a check's figures may be."""

    forward: float = FORWARD
    gradients: float = GRADIENTS
    levels: float = LEVELS


def choose_device(request: Request) -> torch.device:
    """Where a benchmark in one process runs."""
    gpu = request.devices in ("auto", "1") and torch.cuda.is_available()
    if not gpu and request.devices not in ("auto", "cpu", "cpu:1"):
        raise UniclError(f"--devices {request.devices}: no such device for a benchmark", "use auto or cpu")
    return torch.device("cuda" if gpu else "cpu")


def choose_timer(device: torch.device) -> Timer:
    """CPU seconds of this process, or the seconds between two events on the GPU."""
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


def wall_seconds(run: Run) -> float:
    """For what waits for other processes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def run_check(name: str, ready: Prepared, limits: Limits = Limits()) -> dict[str, float]:  # noqa: B008 - frozen
    """The figures of the row's check; a UniclError (exit code 1) where what is compared is not the same."""
    figures = dict(ready.check()) if ready.check is not None else {}
    for what, most in limits._asdict().items():
        apart = figures.get(what, 0.0)
        if not apart <= most:  # nan too
            raise UniclError(
                f"{name}: not compared: {what} {apart:.1e} apart, at most {most:.0e} is allowed",
                "the two do not compute the same: please report it with `unicl doctor --json`",
                exit_code=1,
            )
    return figures


def measure_case(
    case: Case, ready: Prepared, *, rounds: int, device: torch.device, advance: Callable[[int], None]
) -> dict[str, Any]:
    """The row of the document: warm-ups, then rounds in which everyone runs once, each round beginning with another."""
    checks = run_check(case.name, ready)
    timer = ready.timer or choose_timer(device)
    names = list(ready.runs)
    took = dict.fromkeys(names, 0.0)
    runs: dict[str, list[Timing]] = {name: [] for name in names}
    for _ in range(WARM_UPS):
        for name in names:
            if took[name] < LONG:
                measured = time_runs(timer, ready.runs[name], device)
                took[name] = largest_over_ranks(round(measured.seconds * 1e6)) / 1e6  # all run equally often
                runs[name] = [measured] if took[name] >= LONGEST else []
            advance(1)
    often = {name: 1 if ready.timer else repeats_per_round(took[name]) for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if len(runs[name]) == number:
                runs[name].append(time_runs(timer, ready.runs[name], device, often[name]))
            advance(1)
    variants = {name: summarize(ready.count, runs[name]) for name in names}
    return {
        "name": case.name,
        "unit": case.unit,
        "count": ready.count,
        "facts": dict(ready.facts),
        "checks": checks,
        "reference": case.reference,
        "variants": variants,
        "skipped": dict(ready.skipped),
    }


def repeats_per_round(seconds: float) -> int:
    """How often what takes so long is run in a round, so that the clock's grain does not matter."""
    return max(1, min(MOST_REPEATS, round(SHORT / max(seconds, 1e-6))))


class Timing(NamedTuple):
    """One run; ``mib`` is its peak where the GPU's allocator tells it."""

    seconds: float
    mib: float | None


def time_runs(timer: Timer, run: Run, device: torch.device, times: int = 1) -> Timing:
    """A measurement of ``times`` runs, one after the other."""
    work = partial(run_repeatedly, run, times)
    if device.type != "cuda":
        return Timing(timer(work) / times, None)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    seconds = timer(work) / times
    return Timing(seconds, (torch.cuda.max_memory_allocated() - held) / 2**20)


def run_repeatedly(run: Run, times: int) -> Any:
    """``run()`` so many times; what it says where once is enough."""
    for _ in range(times - 1):
        run()
    return run()


def summarize(count: float, runs: Sequence[Timing]) -> dict[str, Any]:
    """Of one variant."""
    median = statistics.median(run.seconds for run in runs)
    mib = max((run.mib for run in runs if run.mib is not None), default=None)
    seconds = [run.seconds for run in runs]
    return {"seconds": seconds, "median_s": median, "per_s": count / max(median, 1e-12), "mib": mib}


def add_ratios(row: dict[str, Any]) -> dict[str, Any]:
    """The row with ``speed`` (how many times as fast as the reference, of each round) and ``memory`` (share of its)."""
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
    """What a fresh process (or several, that talk to each other) says of a row: the peak of one variant, in MiB, or,
    with no variant named, the whole row."""
    job = json.dumps({"request": request._asdict(), "row": row, "variant": variant})
    many = ("torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m") if processes > 1 else ()
    command = [sys.executable, "-m", *many, "unicl_cli.jobs.bench.fresh_process", job]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(request.threads), check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        why = lines[0] if lines else f"exit code {done.returncode}"
        raise UniclError(f"{row}: a fresh process for {variant or 'it'} failed: {why}", exit_code=1)
    return json.loads(done.stdout.splitlines()[-1])
