"""The local engine: units of `prepare` in this process, or on a pool of processes that survives a dying worker."""

import multiprocessing as mp
import os
import signal
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.connection import Connection

from unicl_cli.contracts import DatasetSource
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.engines.engine import Job, Marker, ProgressReport, WorkList
from unicl_cli.jobs.prepare.shards.units import Unit, Work

_POLL = 0.2
"""Seconds between two looks at the stop flag and the workers' progress."""
_FEW_ROWS = 5000
_SMALL_IMAGE_GROUP = 512
"""A row group holds about 8 MB: with at least this many rows the images are small, and cheap to decode."""
_shared: dict[str, Connection] = {}  # a worker inherits its progress pipe: it cannot travel with a pickled unit


def run_local(
    todo: WorkList, *, workers: int, progress: ProgressReport, stopped: Callable[[], bool]
) -> Iterator[Marker]:
    """Run the job on every unit, as an ``Engine`` does.

    One worker, or a few rows with small images, need no other process, unless a server could hold it up.
    """
    workers = min(workers, len(todo.units))
    if not todo.is_remote and (workers <= 1 or _is_small(todo.units)):
        return _run_here(todo, progress, stopped)
    return _run_pool(todo, workers, progress, stopped)


def _is_small(units: Sequence[Unit]) -> bool:
    rows = sum(unit.rows for unit in units)
    return rows <= _FEW_ROWS and all(unit.group_rows >= _SMALL_IMAGE_GROUP for unit in units)


def _run_here(todo: WorkList, progress: ProgressReport, stopped: Callable[[], bool]) -> Iterator[Marker]:
    for unit in todo.units:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd images; what matters becomes a reason
            marker = todo.job(todo.work_of(unit), todo.source_of(unit.source), progress.tick, stopped)
        if marker is None:
            return
        yield marker


def _run_pool(todo: WorkList, workers: int, progress: ProgressReport, stopped: Callable[[], bool]) -> Iterator[Marker]:
    """Yield markers until all units are done or a stop. UniclError for a unit whose worker dies twice."""
    waiting = deque(todo.units)
    while waiting and not stopped():
        lost = yield from _Pool(todo, workers, progress, stopped).drain(waiting)
        if lost and not stopped():
            progress.say(f"a worker died: its unfinished shards ({len(lost)}) start again, one at a time")
        for unit in lost:  # alone: the one that kills its worker again is the culprit
            again = yield from _Pool(todo, 1, progress, stopped).drain(deque([unit]))
            if again and not stopped():
                rows = f"rows {unit.first} to {unit.first + unit.rows - 1}"
                raise UniclError(
                    f"{unit.shard}: its worker died twice (out of memory, or a crash in an image decoder)",
                    f"try --workers 1, or check {'the URLs' if unit.numbers else rows} of {unit.source}",
                )


class _Pool:
    """Worker processes that share no lock with this process, so a dying worker blocks nobody."""

    def __init__(self, todo: WorkList, workers: int, progress: ProgressReport, stopped: Callable[[], bool]) -> None:
        self.todo, self.workers, self.progress, self.stopped = todo, workers, progress, stopped
        # progress in unfinished units, to be taken back if their worker dies
        self.open_rejected: Counter[str] = Counter()
        self.open_bytes = self.open_rows = 0

    def drain(self, waiting: deque[Unit]) -> Generator[Marker, None, list[Unit]]:
        """Work until no unit waits, the pool breaks or a stop comes; return the units that a broken pool lost."""
        context = mp.get_context("spawn")  # never fork: this process has threads
        reader, writer = context.Pipe(duplex=False)
        others = set(mp.active_children())
        pool = ProcessPoolExecutor(self.workers, context, _start_worker, (writer,))
        pending: dict[Future[Marker | None], Unit] = {}
        try:
            while (waiting or pending) and not self.stopped():
                while waiting and len(pending) < 2 * self.workers:
                    with _block_interrupts():
                        pending[pool.submit(_run_in_worker, self.todo.job, self.todo.work_of(waiting[0]))] = waiting[0]
                    waiting.popleft()
                done, _ = wait(pending, _POLL, FIRST_COMPLETED)
                self._listen(reader)
                for future in done:
                    marker = future.result()
                    del pending[future]
                    if marker is not None:
                        self._forget(marker)
                        yield marker
        except BrokenProcessPool:
            time.sleep(_POLL)  # a signal to the whole group reaches workers and this process in any order
            lost = {reason: -count for reason, count in self.open_rejected.items()}
            self.progress.tick(-self.open_rows, -self.open_bytes, lost)
            return list(pending.values())
        finally:
            if pending:  # stopped, broken or failed: their units are dropped, and a shard is whole or absent
                for child in set(mp.active_children()) - others:
                    child.kill()
            pool.shutdown(cancel_futures=True)
            writer.close()
            reader.close()
        return []

    def _listen(self, reader: Connection) -> None:
        while reader.poll():
            rows, size, rejected = reader.recv()
            self.open_rows += rows
            self.open_bytes += size
            self.open_rejected.update(rejected)
            self.progress.tick(rows, size, rejected)

    def _forget(self, marker: Marker) -> None:
        self.open_rows -= marker["rows"] + sum(marker["rejected"].values())
        self.open_bytes -= marker["payload"]
        self.open_rejected.subtract(marker["rejected"])


@contextmanager
def _block_interrupts() -> Generator[None, None, None]:
    """Block SIGINT, so that a process started in here is safe from Ctrl-C until it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(writer: Connection) -> None:
    """Prepare a worker process: it ignores Ctrl-C, which its parent handles, and ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    warnings.simplefilter("ignore")
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _shared["writer"] = writer


def _exit_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(job: Job, work: Work) -> Marker | None:
    return job(work, _open_cached(work.src, work.unit.kind), _send_progress, lambda: False)


def _send_progress(rows: int, size: int, rejected: Mapping[str, int]) -> None:
    """Send one short message in one write: several workers share the pipe without a lock."""
    _shared["writer"].send((rows, size, dict(rejected)))


@lru_cache(maxsize=8)
def _open_cached(src: str, kind: str) -> DatasetSource:
    return open_source(src, kind)
