"""Units of `prepare` on this machine: in this process, or on a pool that survives a dying worker."""

import multiprocessing as mp
import os
import signal
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from unicl_cli.contracts import DatasetSource
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.shards import Tick, Unit, Work

Marker = dict[str, Any]
Job = Callable[[Work, DatasetSource, Tick, Callable[[], bool]], Marker | None]
"""A module-level function (workers pickle it): it says what it did in ``rows, rejected, payload``; None if stopped."""
_POLL = 0.2
_shared: dict[str, Connection] = {}  # a worker's way to tell of progress reaches it by inheritance, never with a task


def run_here(
    units: Iterable[Unit],
    work_of: Callable[[Unit], Work],
    source_of: Callable[[str], DatasetSource],
    job: Job,
    *,
    tick: Tick,
    stopped: Callable[[], bool],
) -> Iterator[Marker]:
    """Markers of the units, one after the other, until stopped."""
    for unit in units:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd images; what matters becomes a reason
            marker = job(work_of(unit), source_of(unit.source), tick, stopped)
        if marker is None:
            return
        yield marker


def run_pool(
    units: Iterable[Unit],
    work_of: Callable[[Unit], Work],
    job: Job,
    workers: int,
    *,
    tick: Tick,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[Marker]:
    """Markers of the units as they are done, until stopped. A unit whose worker dies twice is named in a UniclError."""
    waiting = deque(units)
    while waiting and not stopped():
        lost = yield from _Pool(work_of, job, workers, tick, stopped).drain(waiting)
        if lost and not stopped():
            say(f"a worker died: {len(lost)} unfinished shards are begun again, one at a time")
        for unit in lost:  # alone: the one that kills its worker again is the culprit
            again = yield from _Pool(work_of, job, 1, tick, stopped).drain(deque([unit]))
            if again and not stopped():
                raise UniclError(
                    f"the worker for {unit.shard} died twice (out of memory, or a crash in a decoder)",
                    f"its rows are {unit.first} … {unit.first + unit.rows - 1} of {unit.source}; try --workers 1",
                )


class _Pool:
    """Worker processes that share nothing with this one that a dying worker could leave locked."""

    def __init__(
        self, work_of: Callable[[Unit], Work], job: Job, workers: int, tick: Tick, stopped: Callable[[], bool]
    ) -> None:
        self.work_of, self.job, self.workers, self.tick, self.stopped = work_of, job, workers, tick, stopped
        self.told: Counter[str] = Counter()  # of units that are not done
        self.told_bytes = self.told_rows = 0

    def drain(self, waiting: deque[Unit]) -> Generator[Marker, None, list[Unit]]:
        """Work until nothing waits, the pool breaks or a stop; gives the units that a broken pool took with it."""
        context = mp.get_context("spawn")  # never fork: this process has threads
        reader, writer = context.Pipe(duplex=False)
        others = set(mp.active_children())
        pool = ProcessPoolExecutor(self.workers, context, _start_worker, (writer,))
        pending: dict[Future[Marker | None], Unit] = {}
        try:
            while (waiting or pending) and not self.stopped():
                while waiting and len(pending) < 2 * self.workers:
                    with _interrupts_held():
                        pending[pool.submit(_in_worker, self.job, self.work_of(waiting[0]))] = waiting[0]
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
            self.tick(-self.told_rows, -self.told_bytes, {reason: -count for reason, count in self.told.items()})
            return list(pending.values())
        finally:
            if pending:  # stopped, broken or failed: what they hold is dropped, and a shard is whole or absent
                for child in set(mp.active_children()) - others:
                    child.kill()
            pool.shutdown(cancel_futures=True)
            writer.close()
            reader.close()
        return []

    def _listen(self, reader: Connection) -> None:
        while reader.poll():
            rows, size, rejected = reader.recv()
            self.told_rows += rows
            self.told_bytes += size
            self.told.update(rejected)
            self.tick(rows, size, rejected)

    def _forget(self, marker: Marker) -> None:
        self.told_rows -= marker["rows"] + sum(marker["rejected"].values())
        self.told_bytes -= marker["payload"]
        self.told.subtract(marker["rejected"])


@contextmanager
def _interrupts_held() -> Generator[None, None, None]:
    """A process that is started here begins with SIGINT blocked: Ctrl-C cannot meet it before it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(writer: Connection) -> None:
    """Ctrl-C is the parent's, which kills its workers; they leave by themselves when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    warnings.simplefilter("ignore")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _shared["writer"] = writer


def _leave_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(job: Job, work: Work) -> Marker | None:
    return job(work, _source(work.src, work.unit.kind), _tell, lambda: False)


def _tell(rows: int, size: int, rejected: Mapping[str, int]) -> None:
    """One short message, written in one piece: several workers share the pipe without a lock."""
    _shared["writer"].send((rows, size, dict(rejected)))


@lru_cache(maxsize=8)
def _source(src: str, kind: str) -> DatasetSource:
    return open_source(src, kind)
