"""SLURM: hosts, ranks and port from the variables of a job step, and putting a job back into the queue."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Generator, Mapping
from typing import NamedTuple

from unicl_cli.errors import Stopped, UniclError, write_line
from unicl_cli.launch.stopping import StopFlag

ASK_SECONDS = 30


class SlurmStep(NamedTuple):
    """One process of an ``srun``."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    nodes: int
    address: str  # of the first node
    port: int


def in_step(environ: Mapping[str, str]) -> bool:
    """Return whether this is one of several processes of an ``srun``.

    ``SLURM_NTASKS`` does not show it: it is only what the job has asked for.
    """
    numbers = (environ.get(name, "") for name in ("SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"))
    return all(number.isdecimal() for number in numbers) and int(environ["SLURM_STEP_NUM_TASKS"]) > 1


def is_other_task(environ: Mapping[str, str]) -> bool:
    """Return whether this is a process of an ``srun`` other than the first, which writes the output for all."""
    return in_step(environ) and environ["SLURM_PROCID"] != "0"


def nodes_of_job(environ: Mapping[str, str]) -> int:
    """Return the number of nodes of the job; 0 outside a job."""
    count = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES", "")
    return int(count) if "SLURM_JOB_ID" in environ and count.isdecimal() else 0


def read_step(environ: Mapping[str, str]) -> SlurmStep:
    """Read the variables of an ``srun``. Raises UniclError if one is missing or malformed."""
    try:
        shares = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE") or environ["SLURM_TASKS_PER_NODE"])
        first = list_hosts(environ.get("SLURM_STEP_NODELIST") or environ["SLURM_NODELIST"])[0]
        number = int(environ.get("SLURM_JOB_ID", "0")) + int(environ["SLURM_STEP_ID"])
        return SlurmStep(
            rank=int(environ["SLURM_PROCID"]),
            world=int(environ["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environ["SLURM_LOCALID"]),
            local_world=shares[int(environ.get("SLURM_NODEID", "0"))],
            nodes=len(shares),
            address=environ.get("MASTER_ADDR") or first,
            port=int(environ.get("MASTER_PORT") or 20000 + number % 20000),
        )
    except KeyError as error:
        raise UniclError(
            f"--launch slurm: {error.args[0]} is not set", "start the command with srun, or remove --launch"
        ) from error
    except (ValueError, IndexError) as error:
        raise UniclError(
            f"the variables of SLURM cannot be read: {error}", "use --launch local, or start with torchrun"
        ) from error


def tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks on each node: ``4(x2),3`` -> [4, 4, 3]."""
    found: list[int] = []
    for item in text.split(","):
        count, _, times = item.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def list_hosts(nodelist: str) -> list[str]:
    """Return the host names in ``gpu[01-03,7],login``; scontrol expands them if it is installed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["scontrol", "show", "hostnames", nodelist]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
        if done.stdout.split():
            return done.stdout.split()
    return expand_hosts(nodelist)


def expand_hosts(nodelist: str) -> list[str]:
    """Expand a list of host names without scontrol; each name may have several ranges in brackets."""
    return [name for item in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", nodelist) for name in _names(item)]


def _names(item: str) -> list[str]:
    """``a[1-2]b`` -> [a1b, a2b]; a range keeps the zeros of its first number."""
    found = re.search(r"\[([^\]]*)\]", item)
    if found is None:
        return [item]
    ends = _names(item[found.end() :])
    return [f"{item[: found.start()]}{number}{end}" for number in _numbers(found[1]) for end in ends]


def _numbers(ranges: str) -> list[str]:
    found: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found


@contextlib.contextmanager
def requeue_on_usr1(stop: StopFlag, *, wanted: bool) -> Generator[None]:
    """Put the job back into the queue if SIGUSR1 stops the training inside; do nothing unless ``wanted``."""
    job = os.environ.get("SLURM_JOB_ID")
    if wanted and job is None:
        write_line("warning: --requeue: has no effect outside a SLURM job (SLURM_JOB_ID is not set)")
    try:
        yield
    except Stopped:
        if wanted and job is not None and stop.signal == signal.SIGUSR1:
            requeue(job)
        raise


def requeue(job: str) -> None:
    """Ask SLURM to start the job again. A failure is only reported: the checkpoint is already written."""
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
        reason = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error)
    said = f"warning: {' '.join(command)}: {reason}" if reason else f"job {job} is requeued"
    write_line(said)
