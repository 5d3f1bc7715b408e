"""Units of `prepare` on this machine: in this process, or on a pool that survives a dying worker."""

import multiprocessing as mp
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any

from unicl_cli.contracts import DatasetSource
from unicl_cli.data.shards import Unit, Work, write_unit
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError

Marker = dict[str, Any]
_POLL = 0.2
_shared: dict[str, Any] = {}  # a pool's flag and counter reach its workers by inheritance only, never with a task


def run_here(
    units: Iterable[Unit],
    work_of: Callable[[Unit], Work],
    source_of: Callable[[str], DatasetSource],
    *,
    tick: Callable[[int], None],
    stopped: Callable[[], bool],
) -> Iterator[Marker]:
    """Markers of the units, one after the other, until stopped."""
    for unit in units:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd pictures; what matters becomes a reason
            marker = write_unit(work_of(unit), source_of(unit.source), tick, stopped)
        if marker is None:
            return
        yield marker


def run_pool(
    units: Iterable[Unit],
    work_of: Callable[[Unit], Work],
    workers: int,
    *,
    tick: Callable[[int], None],
    stopped: Callable[[], bool],
) -> Iterator[Marker]:
    """Markers of the units as they are done, until stopped. A unit whose worker dies twice is named in a UniclError."""
    waiting = deque(units)
    while waiting and not stopped():
        lost = yield from _drain(waiting, work_of, workers, tick, stopped)
        for unit in lost:  # alone: the one that kills its worker again is the culprit
            again = yield from _drain(deque([unit]), work_of, 1, tick, stopped)
            if again:
                raise UniclError(
                    f"the worker for {unit.shard} died twice (out of memory, or a crash in a decoder)",
                    f"its rows are {unit.first} … {unit.first + unit.rows - 1} of {unit.source}; try --workers 1",
                )


def _drain(
    waiting: deque[Unit],
    work_of: Callable[[Unit], Work],
    workers: int,
    tick: Callable[[int], None],
    stopped: Callable[[], bool],
) -> Generator[Marker, None, list[Unit]]:
    """Work until nothing waits, the pool breaks or a stop; gives the units that a broken pool took with it."""
    context = mp.get_context("spawn")  # never fork: this process has threads
    stop, counter = context.Event(), context.Value("q", 0)
    pending: dict[Future[Marker | None], Unit] = {}
    seen = 0
    pool = ProcessPoolExecutor(workers, context, _start_worker, (stop, counter))
    try:
        while (waiting or pending) and not stopped():
            while waiting and len(pending) < 2 * workers:
                unit = waiting.popleft()
                pending[pool.submit(_in_worker, work_of(unit))] = unit
            done, _ = wait(pending, _POLL, FIRST_COMPLETED)
            tick(counter.value - seen)
            seen = counter.value
            for future in done:
                marker = future.result()
                del pending[future]
                if marker is not None:
                    yield marker
    except BrokenProcessPool:
        return list(pending.values())
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return []


def _start_worker(stop: Any, counter: Any) -> None:
    """Signals are the parent's: it sets ``stop``, and a worker leaves at its next chunk, or when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _shared.update(stop=stop, counter=counter)


def _leave_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(work: Work) -> Marker | None:
    return write_unit(work, _source(work.src, work.unit.kind), _count, _shared["stop"].is_set)


def _count(rows: int) -> None:
    with _shared["counter"].get_lock():
        _shared["counter"].value += rows


@lru_cache(maxsize=8)
def _source(src: str, kind: str) -> DatasetSource:
    return open_source(src, kind)
