"""The processes that a command runs in, decided from environment variables and options alone."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from unicl_cli.errors import UniclError
from unicl_cli.launch import slurm

LAUNCHER = "UNICL_LAUNCHER_PID"
ATTEMPT = "UNICL_ATTEMPT"
"""In a worker: the number of times that the launcher of unicl has already started the workers."""
WORKER = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
PORT = "29500"
MAX_WORLD = 2**20
"""Processes of a training."""
MAX_LOCAL = 1024
"""Processes that one machine may start."""
WAYS = ("auto", "local", "worker", "slurm")
MPI = (
    "PMI_SIZE",
    "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_RANK",
)
"""Variables that accelerate also takes as signs of a process group."""
ECHOES = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "DistNetworkError")
"""Words in the error of a process that failed because another one did."""


class Nodes(NamedTuple):
    """The values of --nodes, --node-rank and --rdzv."""

    total: int
    rank: int
    rendezvous: str  # HOST:PORT


class Launch(NamedTuple):
    """The decision for this process. ``how``: alone, worker (a launcher started it), or start (start ``processes``)."""

    how: str
    why: str
    processes: int = 1
    nodes: Nodes = Nodes(1, 0, "")
    environ: Mapping[str, str] = MappingProxyType({})  # to be set in a worker
    note: str = ""

    @property
    def world(self) -> int:
        """The number of processes of the whole training, if every node starts as many as this one."""
        return int(self.environ["WORLD_SIZE"]) if self.how == "worker" else self.processes * self.nodes.total

    def describe(self) -> str:
        """Return the decision as text."""
        if self.how == "worker":
            return f"joins as rank {self.environ['RANK']} of {self.environ['WORLD_SIZE']} ({self.why})"
        if self.how == "alone":
            return f"works in this process ({self.why})"
        several = "process" if self.processes == 1 else "processes"
        count, rank, rendezvous = self.nodes
        where = f" as node {rank} of {count}, rendezvous at {rendezvous}" if count > 1 else ""
        return f"starts {self.processes} {several} here{where} ({self.why})"


def is_worker(environ: Mapping[str, str]) -> bool:
    """Return whether a launcher (torchrun, accelerate, a cluster, unicl) has started this process as one of several."""
    return all(name in environ for name in WORKER)


def decide(
    environ: Mapping[str, str], devices: str, *, gpus: Callable[[], int], nodes: Nodes | None = None, how: str = "auto"
) -> Launch:
    """Decide what to do in this environment; ``gpus`` counts the visible GPUs and is called only if it matters.

    Raises UniclError for devices that do not exist and for variables that contradict each other.
    """
    if LAUNCHER in environ and is_worker(environ):  # has the same options as its launcher
        return join_launcher(environ, "started by unicl")
    if how not in WAYS:
        raise UniclError(f"--launch {how}: unknown", f"use one of {', '.join(WAYS)}")
    if nodes is not None:
        return Launch("start", f"--nodes {nodes.total}", count_processes(devices, gpus)[0], nodes)
    if how == "worker" or (how == "auto" and is_worker(environ)):
        return join_launcher(environ, "the launcher's variables")
    if how == "slurm" or (how == "auto" and slurm.in_step(environ)):
        return decide_in_slurm(environ, devices, gpus)
    if how == "auto" and "RANK" in environ and environ.get("WORLD_SIZE", "1") != "1":
        raise UniclError(
            "MASTER_ADDR: not set, though RANK and WORLD_SIZE are",
            "set it to the address of rank 0, or use --launch local",
        )
    return decide_on_this_machine(environ, devices, gpus)


def decide_on_this_machine(environ: Mapping[str, str], devices: str, gpus: Callable[[], int]) -> Launch:
    count, cpu = count_processes(devices, gpus)
    several = slurm.nodes_of_job(environ)
    note = f"using one of the {several} nodes of this job; to use all: srun unicl train …" if several > 1 else ""
    if count > 1:
        return Launch("start", f"--devices {devices}" if cpu else f"{count} GPUs", count, note=note)
    return Launch("alone", "on the CPU" if cpu or not gpus() else "on one GPU", note=note)


def join_launcher(environ: Mapping[str, str], why: str) -> Launch:
    missing = [name for name in WORKER if name not in environ]
    if missing:
        raise UniclError(
            f"--launch worker: {' and '.join(missing)} not set", "start the command with a launcher, e.g. torchrun"
        )
    # without LOCAL_RANK, accelerate would train on each GPU separately
    usual = {"MASTER_PORT": PORT, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    found = {name: environ[name] for name in WORKER} | usual | present(environ, usual)
    check_group(found)
    return Launch("worker", why, environ=found)


def check_group(variables: Mapping[str, str]) -> None:
    """Raise UniclError for variables of a process group that are not numbers, or contradict each other."""
    hint = "let a launcher set it, or unset RANK and WORLD_SIZE to work in one process"
    limits = {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), (0, MAX_WORLD)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), (1, MAX_WORLD)),
        "MASTER_PORT": (1, 2**16 - 1),
    }
    for name, (least, most) in limits.items():
        text = variables[name]
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise UniclError(f"{name}={text}: should be a number from {least} to {most}", hint)
    for name in ("RANK", "LOCAL_RANK"):
        if int(variables[name]) >= int(variables["WORLD_SIZE"]):
            raise UniclError(f"{name}={variables[name]}: WORLD_SIZE is {variables['WORLD_SIZE']}", hint)
    if not variables["MASTER_ADDR"].strip():
        raise UniclError("MASTER_ADDR: empty", hint)


def present(environ: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in names if name in environ}


def decide_in_slurm(environ: Mapping[str, str], devices: str, gpus: Callable[[], int]) -> Launch:
    """Be a worker if srun started one task per GPU; start the workers of this node if it started one task per node."""
    step = slurm.read_step(environ)
    count = count_processes(devices, gpus)[0] if step.world == step.nodes else 1
    if count > 1:
        return Launch(
            "start", "srun, one task per node", count, Nodes(step.nodes, step.rank, f"{step.address}:{step.port}")
        )
    seen = 0 if devices.startswith("cpu") else gpus()
    own = step.local_rank % seen if seen else step.local_rank  # SLURM may show each task its own GPU alone
    variables = {
        "RANK": step.rank,
        "WORLD_SIZE": step.world,
        "LOCAL_RANK": own,
        "LOCAL_WORLD_SIZE": step.local_world,
        "MASTER_ADDR": step.address,
        "MASTER_PORT": step.port,
    }
    return Launch("worker", "srun", environ={name: str(value) for name, value in variables.items()})


def count_processes(devices: str, gpus: Callable[[], int]) -> tuple[int, bool]:
    """Return (number of processes on this machine, whether they use the CPU) for ``auto``, ``N`` or ``cpu:N``."""
    kind, _, count = devices.partition(":")
    if devices == "auto":
        return max(1, gpus()), False
    number = (count or "1") if kind == "cpu" else devices
    if not re.fullmatch(r"[0-9]{1,9}", number) or int(number) < 1:
        raise UniclError(f"--devices {devices}: unknown", "use auto, a number of GPUs, or cpu:N")
    if kind == "cpu" and int(number) > MAX_LOCAL:
        raise UniclError(f"--devices {devices}: more than {MAX_LOCAL:,} processes", "use at most one per core")
    if kind != "cpu" and int(number) > gpus():
        raise UniclError(
            f"--devices {devices}: this machine shows {gpus()} GPUs", "use a smaller number, auto, or cpu:N"
        )
    return int(number), kind == "cpu"


def parse_nodes(count: int | None, rank: int | None, rendezvous: str | None) -> Nodes | None:
    """Check --nodes, --node-rank and --rdzv, which must be given together; return None for a single node."""
    if (count or 1) == 1 and rank in (None, 0) and rendezvous is None:
        return None
    if count is None or rank is None or rendezvous is None:
        raise UniclError(
            "--nodes, --node-rank and --rdzv: must be given together",
            "give all three, with the same --rdzv on each node",
        )
    if not 0 <= rank < count:
        raise UniclError(f"--node-rank {rank}: there are nodes 0 to {count - 1}", "give each node a different number")
    place = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):([0-9]+)", rendezvous)
    if place is None or not 0 < int(place[1]) < 2**16:
        raise UniclError(
            f"--rdzv {rendezvous}: not of the form HOST:PORT", "give the address of node 0 and a free port"
        )
    return Nodes(count, rank, rendezvous)
