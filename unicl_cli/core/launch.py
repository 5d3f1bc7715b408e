"""Which processes a command runs in: joins what a launcher started, starts workers itself, or goes on alone."""

import ctypes
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from unicl_cli.errors import Stopped, UniclError

LAUNCHER = "UNICL_LAUNCHER_PID"
WORKER = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
ECHOES = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "DistNetworkError")
EXPLAINED = (2, 3)  # a worker with these failed of what a user can mend; rank 0 says it itself
STOPPED = 75


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1: the loop writes a checkpoint and leaves. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def install(self) -> None:
        """From the main thread, before anything slow: PID 1 of a container ignores SIGTERM otherwise."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def leave_early(self) -> None:
        """Before the first step, where nothing is lost; workers leave together, in the loop or with their launcher."""
        if self.signal is not None and not is_worker():
            raise Stopped("stopped before a step was made", "the same command goes on")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.signal = number


def is_worker() -> bool:
    """Has torchrun, accelerate, a cluster or unicl itself started this process as one of several?"""
    return all(name in os.environ for name in WORKER)


def is_peer() -> bool:
    """Is this a worker other than the first, whose standard output nobody should see?"""
    return is_worker() and os.environ["RANK"] != "0"


def was_stopped(run: Path, code: int) -> bool:
    """Did workers that ended with ``code`` leave because of a signal, with their state written?"""
    try:
        state = json.loads((run / "status.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError):
        return False
    return code > 128 and state == "stopped"


def processes(devices: str) -> tuple[int, bool]:
    """(number of processes, on the CPU) that ``auto``, ``N`` or ``cpu:N`` asks for on this machine."""
    kind, _, count = devices.partition(":")
    if kind == "cpu":
        count = count or "1"
    elif kind == "auto" and not count:
        import torch

        return max(1, torch.cuda.device_count()), False
    else:
        count = devices
    if not count.isdigit() or int(count) < 1:
        raise UniclError(f"--devices {devices}: unknown", "use auto, a number of GPUs, or cpu:N")
    if kind != "cpu":
        import torch

        if int(count) > torch.cuda.device_count():
            raise UniclError(
                f"--devices {devices}: this machine shows {torch.cuda.device_count()} GPUs",
                "use a smaller number, auto, or cpu:N",
            )
    return int(count), kind == "cpu"


def launched(devices: str, argv: Sequence[str], logs: Path | None = None, stop: StopFlag | None = None) -> int | None:
    """Runs ``unicl *argv`` in as many workers as ``devices`` asks for, and returns their exit code.

    None: this process is a worker already, or the only process; go on. ``stop`` has seen the signals so far.
    """
    if is_worker():
        guard_against_orphans()
        return None
    count, _ = processes(devices)
    return None if count == 1 else elastic(count, argv, logs, stop)


def elastic(count: int, argv: Sequence[str], logs: Path | None, stop: StopFlag | None = None) -> int:
    """Torch elastic's agent on this machine; the exit code of the worker that failed first, or 0."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    redirects = dict.fromkeys(range(1, count), Std.ALL)  # rank 0 alone speaks to the terminal
    wanted: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": count,
        "run_id": f"unicl-{os.getpid()}",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",  # a free port: two runs on a machine never meet
        "rdzv_configs": {"timeout": 60},
        "max_restarts": 0,
        "monitor_interval": 0.1,
        "local_addr": "localhost",  # no look-up of the machine's full name
        "signals_to_handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "shutdown_timeout": 300,
        "logs_specs": DefaultLogsSpecs(log_dir=str(logs) if logs else None, redirects=redirects),
    }
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # older torch lacks some
    config = LaunchConfig(**{key: value for key, value in wanted.items() if key in known})
    for name in logging.root.manager.loggerDict:  # the agent's box and its warning about signals
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if stop is not None:
        stop.leave_early()  # from here on the agent handles the signals
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "unicl_cli", *argv)
    except SignalException as ended:
        return 128 + int(ended.sigval)
    except ChildFailedError as failed:
        return blame(failed, count)
    return 0


def blame(failed: Any, count: int) -> int:
    """Says once which rank failed first and why; peers that died of the lost connection are echoes."""

    def order(item: tuple[int, Any]) -> tuple[bool, bool, int, int]:
        rank, failure = item
        echo = any(word in str(failure.message) for word in ECHOES)
        return failure.exitcode not in EXPLAINED, echo, failure.timestamp, rank

    rank, failure = min(failed.failures.items(), key=order)
    told: Any = failure.message if isinstance(failure.message, dict) else {"message": str(failure.message)}
    if failure.exitcode in EXPLAINED and (0 not in failed.failures or failed.failures[0].exitcode not in EXPLAINED):
        raise UniclError(told["message"].removeprefix("UniclError: "), exit_code=failure.exitcode)
    if failure.exitcode in (*EXPLAINED, STOPPED):
        return int(failure.exitcode)
    sys.stderr.write(told.get("extraInfo", {}).get("py_callstack", ""))
    how = (
        f"exit code {failure.exitcode}"
        if failure.exitcode >= 0
        else f"killed by {signal.Signals(-failure.exitcode).name}"
    )
    raise UniclError(
        f"rank {rank} of {count} failed ({how})", "the same command goes on from the last checkpoint", exit_code=1
    )


def recorded(work: Callable[[], None]) -> None:
    """``work()`` in a worker that unicl started: a bug is written for the launcher, which prints it once."""
    if LAUNCHER not in os.environ or not is_worker():
        work()
        return
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(work)()
    except UniclError:
        raise
    except Exception:  # noqa: BLE001 - recorded just now; printing it here too would interleave with the peers'
        sys.stderr.flush()
        os._exit(1)


def guard_against_orphans() -> None:
    """A worker ends with its launcher, even one that was killed: a death signal on Linux, a poll elsewhere."""
    if LAUNCHER not in os.environ:
        return
    parent = int(os.environ[LAUNCHER])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_accelerator(precision: str = "auto", devices: str = "auto") -> Any:
    """The Accelerator of this process: device, precision (auto: bf16 on a GPU that has it, else fp32), process group.

    Everything that accelerate would read from its environment variables or its per-user file is passed here.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

    # torch 2.15 renames an option that accelerate still passes on under its old name
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    cpu = devices.startswith("cpu") or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if precision == "auto":
        precision = "bf16" if not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and cpu:  # accelerate would go on in fp32 and say nothing
        raise UniclError("precision fp16 needs a GPU", "set precision=auto, bf16 or fp32")
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # a plain 1 gives way to the environment
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(minutes=10)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )


def backends() -> list[str]:
    """What the processes of a run could talk through on this machine."""
    import torch.distributed as dist

    if not dist.is_available():
        return []
    found = {"nccl": dist.is_nccl_available(), "gloo": dist.is_gloo_available(), "mpi": dist.is_mpi_available()}
    return [name for name, there in found.items() if there]
