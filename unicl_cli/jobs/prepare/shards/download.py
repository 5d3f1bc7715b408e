"""Images of a unit that are downloaded: many at once, few from one host, in the order of the rows."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.data.fetch import Fetcher, FetchError

DOWNLOADS = 32
"""The most downloads of a process at a time."""
PER_HOST = 8
"""The most downloads of a command from one host at a time."""
NO_RESOURCES = "no_resources"
"""Reason of a download that this machine had no thread or memory for."""
AHEAD = 1024
"""The most rows of a process whose images are downloaded before an earlier one is there."""
MOST_WAITING = 128_000_000
"""The bytes of such images from which on no further download begins."""
MEAN_BYTES = 100_000
"""The size that an image is planned with before it is downloaded."""
_PATIENCE = 1.0
"""Seconds in which work that has begun may end when its results are not wanted any more."""
T = TypeVar("T")
R = TypeVar("R")


class Downloads(NamedTuple):
    """The way in which images are downloaded: limits of one download, and of one host in each process."""

    fetch: Fetcher = Fetcher()
    per_host: int = PER_HOST

    def share_among(self, processes: int) -> Downloads:
        """Return what each of so many processes may do; more processes than downloads of one host make no sense."""
        return self._replace(per_host=max(1, self.per_host // max(1, processes)))


def url_of(source: DatasetSource, row: Row) -> str | None:
    """Return the address of the row's image; None if the source reads it. The method is optional."""
    find: Callable[[Row], str | None] | None = getattr(source, "url", None)
    return find(row) if find else None


def origin_of(source: DatasetSource, row: Row) -> str | None:
    """Return the address that the row's image came from before the source had it. The method is optional."""
    find: Callable[[Row], str | None] | None = getattr(source, "origin", None)
    return find(row) if find else None


def host_of(url: str) -> str:
    """Return the host of a URL in lower case; the empty text if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def download(fetch: Fetcher, url: str) -> bytes:
    """Return the bytes at ``url``. Raises FetchError."""
    try:
        return fetch(url)
    except (RuntimeError, MemoryError) as error:  # no thread can be started, or no memory is left
        raise FetchError(NO_RESOURCES, str(error)) from error


def map_ahead(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int,
    ahead: int,
    weigh: Callable[[R], int] = lambda _: 0,
    host: Callable[[T], str] = lambda _: "",
    per_host: int = PER_HOST,
) -> Iterator[R]:
    """Yield ``work`` of each item in order, up to ``ahead`` of which are begun or done at a time.

    With ``weigh``, the bytes of a result, no item is begun while results of MOST_WAITING bytes wait for an earlier
    one. With ``host``, the host that an item is downloaded from, at most ``per_host`` items of one host are worked on;
    others are begun before those that wait for it. What is not begun when the iteration ends never is.
    """
    backlog = Backlog(work, weigh, host, per_host)
    team: list[threading.Thread] = []
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(backlog.put(item))
            if len(team) < threads:
                # a daemon: a command that was stopped does not wait for a slow server
                thread = threading.Thread(target=backlog.run_all, daemon=True)
                thread.start()
                team.append(thread)
            if len(waiting) == ahead:
                yield backlog.take(waiting.popleft())
        while waiting:
            yield backlog.take(waiting.popleft())
    finally:
        backlog.close()
        end = time.monotonic() + _PATIENCE
        for thread in team:
            thread.join(max(0, end - time.monotonic()))


class _Job(NamedTuple, Generic[T, R]):
    number: int
    item: T
    host: str
    future: Future[R]


class Backlog(Generic[T, R]):
    """Items that threads begin in order, but for those whose host is busy, and results that wait for an earlier one."""

    def __init__(
        self, work: Callable[[T], R], weigh: Callable[[R], int], host: Callable[[T], str], per_host: int
    ) -> None:
        self.work, self.weigh, self.host, self.per_host = work, weigh, host, per_host
        self.todo: deque[_Job[T, R]] = deque()
        self.busy: Counter[str] = Counter()
        self.put_in = self.taken = self.bytes = 0
        self.changed = threading.Condition()
        self.is_closed = False

    def put(self, item: T) -> Future[R]:
        """Add an item, and return its coming result."""
        job = _Job[T, R](self.put_in, item, self.host(item), Future())
        with self.changed:
            self.put_in += 1
            self.todo.append(job)
            self.changed.notify()
        return job.future

    def run_all(self) -> None:
        """Do the work of one item after the other until the end."""
        while (job := self._begin_next()) is not None:
            try:
                result = self.work(job.item)
                size = self.weigh(result)
            except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
                self._end(job.host, 0)
                job.future.set_exception(error)
            else:
                self._end(job.host, size)
                job.future.set_result(result)
                del result  # the next item may be long in coming
            del job

    def _begin_next(self) -> _Job[T, R] | None:
        """Wait for an item that may begin; None at the end."""
        with self.changed:
            while not self.is_closed:
                for at, job in enumerate(self.todo):
                    if self._may_begin(job):
                        del self.todo[at]
                        self.busy[job.host] += 1
                        return job
                self.changed.wait()
        return None

    def _may_begin(self, job: _Job[T, R]) -> bool:
        """The item that is taken next needs no room: it makes some."""
        has_room = self.bytes < MOST_WAITING or job.number <= self.taken
        return has_room and (not job.host or self.busy[job.host] < self.per_host)

    def _end(self, host: str, size: int) -> None:
        """Note that an item has ended; its thread begins what may begin now."""
        with self.changed:
            self.bytes += size
            self.busy[host] -= 1
            if not self.busy[host]:
                del self.busy[host]

    def take(self, future: Future[R]) -> R:
        """Wait for the result of the next item, and make room."""
        result = future.result()
        size = self.weigh(result)
        with self.changed:
            was_full = self.bytes >= MOST_WAITING
            self.bytes -= size
            self.taken += 1
            if was_full:
                self.changed.notify_all()
        return result

    def close(self) -> None:
        """Begin no work any more."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()
