"""`bench start`: startup of the command line, as CPU time of a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from functools import partial
from types import MappingProxyType
from typing import Any

from unicl_cli.errors import UniclError
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, Run

OURS, BARE = "unicl", "python"
COMMANDS = MappingProxyType(
    {
        "help": ("--help",),
        "version": ("--version",),
        "train-help": ("train", "--help"),
        "validate": ("recipes", "validate", "quickstart"),
    }
)


def cases(request: Request) -> list[Case]:
    """Return the cases; Python alone is the lower bound, and open_clip's training command has a --help too."""
    found: list[Case] = []
    for name, words in COMMANDS.items():
        peer = (PEER,) if request.vs and name == "train-help" else ()
        found.append(
            Case(name, "starts", (OURS, BARE, *peer), peer[0] if peer else OURS, partial(prepare_start, words))
        )
    return found


def prepare_start(words: tuple[str, ...], variants: Collection[str]) -> PreparedCase:
    runs: dict[str, Run] = {
        OURS: partial(cpu_seconds, "-m", "unicl_cli", *words),
        BARE: partial(cpu_seconds, "-c", "pass"),
        PEER: partial(cpu_seconds, "-m", "open_clip_train.main", "--help"),
    }
    return PreparedCase(1, {name: runs[name] for name in variants}, {"words": " ".join(words)}, timer=measured_by_run)


def measured_by_run(run: Run) -> float:
    """Return the time that the run has measured itself."""
    return run()


def cpu_seconds(*words: str) -> float:
    """Return the CPU seconds (user and system) of ``python *words``."""
    child: Any = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    errors = child.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if child.returncode:
        raise UniclError(f"python {' '.join(words)}: exit code {child.returncode}: {errors[-300:]}", exit_code=1)
    return usage.ru_utime + usage.ru_stime
