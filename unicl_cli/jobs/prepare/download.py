"""Images of a unit that are downloaded: many at once, few from one host, in the order of the rows."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.data.fetch import Fetcher, FetchError

DOWNLOADS = 32
"""The most downloads of a process at a time."""
PER_HOST = 8
"""The most downloads of a command from one host at a time."""
NO_RESOURCES = "no_resources"
"""Reason of a download that this machine had no thread or memory for."""
MEAN_BYTES = 100_000
"""The size that an image is planned with before it is downloaded."""
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


def map_ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int) -> Iterator[R]:
    """Yield ``work`` of each item in order, up to ``ahead`` of which are in memory at a time.

    What is not begun when the iteration ends never is.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
