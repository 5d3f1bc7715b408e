"""This process as one of a command's: join the workers of a launcher, or start workers, and report their end."""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.core.machine import cores
from unicl_cli.errors import Stopped, UniclError, write_line
from unicl_cli.launch import plan
from unicl_cli.launch.plan import ATTEMPT, ECHOES, LAUNCHER, MPI, WORKER, Launch, Nodes, decide
from unicl_cli.launch.stopping import StopFlag

ORPHAN_SECONDS = 30
PEER_SECONDS = 5


def count_gpus() -> int:
    """Return the number of GPUs that this process may use; Apple's counts as one."""
    import torch

    return torch.cuda.device_count() or int(torch.backends.mps.is_available())


def decide_launch(devices: str, nodes: Nodes | None = None, how: str = "auto") -> Launch:
    """Decide how this process runs the command."""
    return decide(os.environ, devices, gpus=count_gpus, nodes=nodes, how=how)


def is_worker() -> bool:
    """Return whether a launcher (torchrun, accelerate, a cluster, unicl) has started this process as one of several."""
    return plan.is_worker(os.environ)


def is_peer() -> bool:
    """Return whether this is a worker other than the first, whose standard output must stay empty."""
    return is_worker() and os.environ["RANK"] != "0"


def is_restarted() -> bool:
    """Return whether the launcher has restarted this process because a peer failed."""
    return is_worker() and os.environ.get(ATTEMPT, "0") != "0"


def run_in_workers(
    launch: Launch,
    argv: Sequence[str],
    logs: Path | None = None,
    stop: StopFlag | None = None,
    restarts: int = 0,
    task: str = "",
) -> int | None:
    """Run ``unicl *argv`` in the workers that ``launch`` asks for, and return their exit code.

    None: this process is a worker or the only process, and does the work itself. ``logs`` is the folder for the output
    of workers without a terminal; ``stop`` holds a signal that has already come; ``task`` must be equal on all nodes.
    """
    if launch.how == "worker":
        os.environ.update(launch.environ)
        guard_against_orphans()
        return None
    for name in (*WORKER, "LOCAL_RANK", "LOCAL_WORLD_SIZE", *MPI):  # of a group that this process does not belong to
        os.environ.pop(name, None)
    if launch.note:
        write_line(launch.note)
    if launch.how == "alone" and not restarts:
        return None
    from unicl_cli.launch.elastic import start_workers

    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // launch.processes)))
    return start_workers(launch, argv, logs, stop, restarts, task)


def run_and_report(work: Callable[[], None]) -> None:
    """Run ``work()``; in a worker, record an exception for the launcher, which prints it once.

    Under another launcher than unicl, the process that failed first prints it and the others write one line.
    """
    if not is_worker():
        work()
        return
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(work)()
    except UniclError as error:
        if is_peer() and not isinstance(error, Stopped):
            _print_as_peer(error)
        raise
    except BrokenPipeError:  # the reader of standard output has left, which `main` reports
        raise
    except Exception as error:
        echo = any(word in str(error) for word in ECHOES)
        if LAUNCHER not in os.environ and not echo:
            raise
        if LAUNCHER not in os.environ:
            write_line(f"rank {os.environ['RANK']}: lost the connection to a process that ended")
        sys.stderr.flush()  # printing it here too would interleave with the peers'
        os._exit(1)


def _print_as_peer(error: UniclError) -> None:
    """Print an error that rank 0 may not know; under our own launcher leave it to rank 0, which prints it for all."""
    if LAUNCHER in os.environ:
        time.sleep(PEER_SECONDS)  # if a peer ended first, it would be printed twice
    else:
        write_line(f"rank {os.environ['RANK']}: {error.message}")


def end_worker(status: int) -> None:
    """End this process, if it is a worker, without Python's teardown.

    A thread of gloo that frees a tensor during the teardown aborts the process, even after successful work.
    """
    if not is_worker():
        return
    threads: Any = threading
    at_exit: Any = atexit
    threads._shutdown()  # as Python does first: wait for threads, then run the registered functions
    at_exit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader is gone
            stream.flush()
    os._exit(status)


def guard_against_orphans() -> None:
    """Make a worker end with its launcher, even if that is killed: by a death signal on Linux, by polling elsewhere."""
    if LAUNCHER not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = int(os.environ.get(LAUNCHER, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)  # time for a checkpoint, which the peers write too: they get the same signal
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def list_backends() -> list[str]:
    """Return the communication backends of torch on this machine."""
    import torch.distributed as dist

    if not dist.is_available():
        return []
    found = {"nccl": dist.is_nccl_available(), "gloo": dist.is_gloo_available(), "mpi": dist.is_mpi_available()}
    return [name for name, there in found.items() if there]
