"""Images of a unit that are downloaded: many at once, few from one host, in the order of the rows."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
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


class Downloader:
    """A fetcher that threads share, with at most ``per_host`` downloads from one host at a time."""

    def __init__(self, fetch: Fetcher, per_host: int) -> None:
        self.fetch, self.per_host = fetch, per_host
        self.busy: Counter[str] = Counter()
        self.freed = threading.Condition()
        self.is_closed = False

    def __call__(self, url: str) -> bytes:
        """Return the bytes at ``url``. Raises FetchError."""
        host = host_of(url)
        with self.freed:
            self.freed.wait_for(lambda: self.is_closed or self.busy[host] < self.per_host)
            if self.is_closed:
                raise FetchError("stopped")
            self.busy[host] += 1
        try:
            return self.fetch(url)
        except (RuntimeError, MemoryError) as error:  # no thread can be started, or no memory is left
            raise FetchError(NO_RESOURCES, str(error)) from error
        finally:
            with self.freed:
                self.busy[host] -= 1
                if not self.busy[host]:
                    del self.busy[host]
                self.freed.notify_all()

    def close(self) -> None:
        """Begin no download any more; those that wait for their host give up."""
        with self.freed:
            self.is_closed = True
            self.freed.notify_all()


def map_ahead(
    work: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int, weigh: Callable[[R], int] | None = None
) -> Iterator[R]:
    """Yield ``work`` of each item in order, up to ``ahead`` of which are begun or done at a time.

    With ``weigh``, the bytes of a result, no item is begun while results of MOST_WAITING bytes wait for an earlier
    one. What is not begun when the iteration ends never is.
    """
    backlog = Backlog(weigh or (lambda _: 0))
    todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    team: list[threading.Thread] = []
    waiting: deque[Future[R]] = deque()
    try:
        for number, item in enumerate(items):
            future: Future[R] = Future()
            waiting.append(future)
            todo.put(partial(backlog.run, future, number, work, item))
            if len(team) < threads:
                # a daemon: a command that was stopped does not wait for a slow server
                thread = threading.Thread(target=_run_all, args=(todo,), daemon=True)
                thread.start()
                team.append(thread)
            if len(waiting) == ahead:
                yield backlog.take(waiting.popleft())
        while waiting:
            yield backlog.take(waiting.popleft())
    finally:
        backlog.close()
        end = time.monotonic() + _PATIENCE
        for _ in team:
            todo.put(None)
        for thread in team:
            thread.join(max(0, end - time.monotonic()))


def _run_all(todo: SimpleQueue[Callable[[], None] | None]) -> None:
    while (run := todo.get()) is not None:
        run()
        del run  # it holds the result


class Backlog(Generic[R]):
    """Results that wait for an earlier one: a slow server must neither hold up the others nor fill the memory."""

    def __init__(self, weigh: Callable[[R], int]) -> None:
        self.weigh = weigh
        self.bytes = 0
        self.taken = 0
        self.changed = threading.Condition()
        self.is_closed = False

    def run(self, future: Future[R], number: int, work: Callable[[T], R], item: T) -> None:
        """Do the work of an item when there is room for its result; the next to be taken never waits."""
        with self.changed:
            self.changed.wait_for(lambda: self.bytes < MOST_WAITING or number <= self.taken or self.is_closed)
            if self.is_closed:
                return
        try:
            result = work(item)
            with self.changed:
                self.bytes += self.weigh(result)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
            future.set_exception(error)
        else:
            future.set_result(result)

    def take(self, future: Future[R]) -> R:
        """Wait for the result of the next item, and make room."""
        result = future.result()
        with self.changed:
            self.bytes -= self.weigh(result)
            self.taken += 1
            self.changed.notify_all()
        return result

    def close(self) -> None:
        """Begin no work any more."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()
