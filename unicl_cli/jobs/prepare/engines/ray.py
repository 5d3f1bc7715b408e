"""The distributed engine: units of `prepare` as tasks of Ray, on this machine or on nodes that share its folders.

A task writes its own shard and marker, and no image passes through Ray; so the corpus is the same, byte for byte, as
that of the local engine. Ray runs a task again whose worker or node has died.
"""

import logging
import os
import signal
import socket
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.contracts import DatasetSource
from unicl_cli.data.manifest import PLAN
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.engines.engine import Engine, Job, Marker, ProgressReport, WorkList
from unicl_cli.jobs.prepare.plan_file import format_versions
from unicl_cli.jobs.prepare.shards.shards import VERSIONS
from unicl_cli.jobs.prepare.shards.units import Unit, Work
from unicl_cli.storage.remote import RemotePath, set_environment

RETRIES = 2
"""Times that Ray runs a unit again whose worker has died."""
_POLL, _END = 0.2, 20
"""Seconds between two looks at the stop flag, and for which a stop waits for tasks to end."""
_OBJECT_STORE = 200_000_000
"""Bytes of the shared memory of a cluster that is started here: units send small markers only."""
_INHERITED = ("UNICL_PLUGINS", "UNICL_DATA", "HF_HOME", "HF_HUB_OFFLINE")
_OF_STORES = ("AWS_", "FSSPEC_", "AZURE_", "GOOGLE_")
"""Beginnings of the variables with addresses and keys of object stores, which a node needs for an output there."""


class Place(NamedTuple):
    """The folder, some variables of the environment and the versions of the command, which its tasks share."""

    folder: str
    environment: Mapping[str, str]
    versions: Mapping[str, str]


@contextmanager
def open_ray(address: str | None, workers: int | None) -> Generator[tuple[Engine, int], None, None]:
    """Yield the engine and the number of units at a time, on the cluster at ``address`` or on one started here.

    ``workers`` None: all CPUs of the cluster. UniclError without Ray, or if no cluster answers.
    """
    ray = _import_ray()
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    own: dict[str, Any] = {
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE,
    }
    try:
        if address:
            _check_listens(address)
        ray.init(address=address or "local", **quiet, **({} if address else own))
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        hint = "check `ray status` on the head node, or leave out --cluster to use this machine"
        if address:
            raise UniclError(f"--cluster {address}: {first}", hint) from error
        raise UniclError(f"--engine ray: {first}", "try again, or leave out --engine") from error
    finally:
        for number, handler in heard.items():  # Ray takes SIGTERM over, and exits without the command that continues
            signal.signal(number, handler)
    try:
        yield run_ray, workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics to its makers
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than Ray's 30 s
    import ray

    return ray


def run_ray(todo: WorkList, *, workers: int, progress: ProgressReport, stopped: Callable[[], bool]) -> Iterator[Marker]:
    """Run the job on every unit, as an ``Engine`` does; progress moves by whole units. Ray is connected."""
    ray = _import_ray()
    start = ray.remote(num_cpus=1, max_retries=RETRIES)(run_on_node).remote
    place = Place(str(Path.cwd()), _choose_variables(todo), VERSIONS)
    waiting = deque(todo.units)
    pending: dict[Any, Unit] = {}
    try:
        while (waiting or pending) and not stopped():
            while waiting and len(pending) < workers:
                work = todo.work_of(waiting[0])
                pending[start(todo.job, work._replace(out=work.out.absolute()), place)] = waiting.popleft()
            done, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL)
            for task in done:
                marker = _result_of(task, pending.pop(task))
                progress.tick(marker["rows"] + sum(marker["rejected"].values()), marker["payload"], marker["rejected"])
                yield marker
    finally:
        for task in pending:
            ray.cancel(task, force=True)
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=_END)


def _choose_variables(todo: WorkList) -> dict[str, str]:
    """Return the environment variables that tasks take over; keys of stores only if they write to one."""
    to_store = isinstance(todo.work_of(todo.units[0]).out, RemotePath)
    return {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or (to_store and name.startswith(_OF_STORES))
    }


def _result_of(task: Any, unit: Unit) -> Marker:
    """Return the marker of a finished task. UniclError for a unit whose worker dies every time."""
    ray = _import_ray()
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:  # raised in the job: as if it had run here
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise UniclError(
            f"{unit.shard}: its worker died {RETRIES + 1} times ({type(error).__name__})",
            f"check rows {unit.first} to {unit.first + unit.rows - 1} of {unit.source}, or the memory of the nodes",
        ) from error


def run_on_node(job: Job, work: Work, place: Place) -> Marker | None:
    """Run the job in a worker of Ray. UniclError for a node that is not like the command's own machine."""
    node = f"Ray node {socket.gethostname()}"
    if place.versions != VERSIONS:
        raise UniclError(
            f"{node}: has {format_versions(VERSIONS)}, but this machine {format_versions(place.versions)}",
            "install the same versions on all nodes",
        )
    set_environment(place.environment)
    for folder, seen in ((place.folder, Path(place.folder).is_dir()), (work.out, (work.out / PLAN).is_file())):
        if not seen:
            raise UniclError(f"{node}: does not see {folder}", "use folders that all nodes share at the same path")
    os.chdir(place.folder)  # sources may be relative to it
    warnings.simplefilter("ignore")  # Pillow's remarks on odd images; what matters becomes a reason
    return job(work, _open_cached(work.src, work.unit.kind), lambda rows, size, rejected: None, lambda: False)


@lru_cache(maxsize=8)
def _open_cached(src: str, kind: str) -> DatasetSource:
    return open_source(src, kind)
