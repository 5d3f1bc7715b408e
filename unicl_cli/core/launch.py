"""This process as one of a command's: joins what a launcher started, or starts it; opens the group; reports its end."""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from unicl_cli.core import launch_plan
from unicl_cli.core.launch_plan import ATTEMPT, LAUNCHER, WORKER, Launch, Nodes, decide
from unicl_cli.core.machine import cores
from unicl_cli.core.stopping import StopFlag
from unicl_cli.errors import Stopped, UniclError, plain

MPI = (
    "PMI_SIZE",
    "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_RANK",
)
"""What accelerate takes for a group of processes, too."""
ORPHAN_SECONDS = 30
PEER_SECONDS = 5
ECHOES = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "DistNetworkError")
"""In the message of a process that failed because another one did."""


def visible() -> int:
    """GPUs that this process may use; Apple's counts as one."""
    import torch

    return torch.cuda.device_count() or int(torch.backends.mps.is_available())


def here(devices: str, nodes: Nodes | None = None, how: str = "auto") -> Launch:
    """The decision for this process."""
    return decide(os.environ, devices, gpus=visible, nodes=nodes, how=how)


def is_worker() -> bool:
    """Has torchrun, accelerate, a cluster or unicl itself started this process as one of several?"""
    return launch_plan.is_worker(os.environ)


def is_peer() -> bool:
    """Is this a worker other than the first, whose standard output nobody should see?"""
    return is_worker() and os.environ["RANK"] != "0"


def restarted() -> bool:
    """Has a launcher started this process again, after one of its peers had failed?"""
    return is_worker() and os.environ.get(ATTEMPT, "0") != "0"


def launched(
    launch: Launch,
    argv: Sequence[str],
    logs: Path | None = None,
    stop: StopFlag | None = None,
    restarts: int = 0,
    task: str = "",
) -> int | None:
    """Runs ``unicl *argv`` in the workers that ``launch`` asks for, and returns their exit code.

    None: this process is a worker, or the only process; go on. ``logs`` keeps what workers without the terminal say;
    ``stop`` has seen the signals so far; ``task`` must be the same on each node.
    """
    if launch.how == "worker":
        os.environ.update(launch.environ)
        guard_against_orphans()
        return None
    for name in (*WORKER, "LOCAL_RANK", "LOCAL_WORLD_SIZE", *MPI):  # of a group that this process is no part of
        os.environ.pop(name, None)
    if launch.note:
        sys.stderr.write(f"{launch.note}\n")
    if launch.how == "alone" and not restarts:
        return None
    from unicl_cli.core.launch_elastic import start

    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // launch.processes)))
    return start(launch, argv, logs, stop, restarts, task)


def recorded(work: Callable[[], None]) -> None:
    """``work()`` in a worker: a bug is written for the launcher, which prints it once.

    Where the launcher is not unicl, the process that failed first prints it and the others say one line.
    """
    if not is_worker():
        work()
        return
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(work)()
    except UniclError as error:
        if LAUNCHER not in os.environ and is_peer() and not isinstance(error, Stopped):  # nobody else would say it
            sys.stderr.write(f"rank {os.environ['RANK']}: {plain(error.message)}\n")
        if LAUNCHER in os.environ and is_peer() and not isinstance(error, Stopped):
            time.sleep(PEER_SECONDS)  # rank 0 says it for all; were a peer the first to end, it would be said twice
        raise
    except Exception as error:
        echo = any(word in str(error) for word in ECHOES)
        if LAUNCHER not in os.environ and not echo:
            raise
        if LAUNCHER not in os.environ:
            sys.stderr.write(f"rank {os.environ['RANK']}: lost the connection to a process that ended\n")
        sys.stderr.flush()  # printing it here too would interleave with the peers'
        os._exit(1)


def end_worker(status: int) -> None:
    """Ends this process if it is a worker, without Python's teardown; any other goes on.

    A thread of gloo that lets go of a tensor during the teardown aborts the process, whatever the work has come to.
    """
    if not is_worker():
        return
    threads: Any = threading
    at_exit: Any = atexit
    threads._shutdown()  # as Python does before: waits for threads, then runs what was registered
    at_exit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


def guard_against_orphans() -> None:
    """A worker ends with its launcher, even one that was killed: a death signal on Linux, a poll elsewhere."""
    if LAUNCHER not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = int(os.environ.get(LAUNCHER, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)  # for a checkpoint, with the peers, which are told at the same time
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
    mixed = "no" if precision == "fp32" else precision
    set_aside_accelerates(mixed, cpu="1" if cpu else "no")
    if is_worker():
        prepare_group(torch)
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # a plain 1 gives way to the environment
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(minutes=10)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    if is_worker() and str(accelerator.num_processes) != os.environ["WORLD_SIZE"]:  # each would train for itself
        raise UniclError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but accelerate opened no group", "see unicl doctor")
    return accelerator


def set_aside_accelerates(precision: str, *, cpu: str) -> None:
    """Takes accelerate's own settings out of the environment; those that contradict the recipe are named once."""
    own = {"MIXED_PRECISION": precision, "GRADIENT_ACCUMULATION_STEPS": "1", "USE_CPU": cpu}
    own |= dict.fromkeys(("DYNAMO_BACKEND", "USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM", "DOWNCAST_BF16"), "no")
    plainly = {"false": "no", "0": "no", "off": "no", "": "no", "true": "1", "yes": "1"}
    odd: list[str] = []
    for name, wanted in own.items():
        given = os.environ.pop(f"ACCELERATE_{name}", None)
        if given is not None and plainly.get(given.lower(), given.lower()) not in (
            wanted,
            "no" if name == "USE_CPU" else wanted,
        ):
            odd.append(f"ACCELERATE_{name}={given}")
    if odd and not is_peer():
        sys.stderr.write(f"warning: {', '.join(odd)}: ignored, the recipe and the options of unicl count\n")


def prepare_group(torch: Any) -> None:
    """What a process group reads from the environment when it is opened."""
    for name in MPI:  # accelerate would look there too
        os.environ.pop(name, None)
    if "OMP_NUM_THREADS" not in os.environ:
        share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        own = max(1, min(cores(), share))  # a scheduler may have given this process its own cores
        os.environ["OMP_NUM_THREADS"] = str(own)
        torch.set_num_threads(own)
    if not torch.cuda.is_available():
        return
    from accelerate.utils import check_cuda_p2p_ib_support

    # the last collectives are written down when one hangs
    wanted = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_FR_DUMP_ON_TIMEOUT": "1"}
    if not check_cuda_p2p_ib_support():  # accelerate raises otherwise
        wanted |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def backends() -> list[str]:
    """What the processes of a run could talk through on this machine."""
    import torch.distributed as dist

    if not dist.is_available():
        return []
    found = {"nccl": dist.is_nccl_available(), "gloo": dist.is_gloo_available(), "mpi": dist.is_mpi_available()}
    return [name for name, there in found.items() if there]
