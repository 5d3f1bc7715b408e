"""Batches of items as they arrive: threads work ahead, and a slow source never delays items that are ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P")
R = TypeVar("R")


class End(NamedTuple):
    """The last arrival, with what went wrong at the source."""

    error: Exception | None


class BatchStream(Generic[P, R]):
    """Each item with ``work(item)``, in order, in batches of at most ``batch`` and at least one; iterate once.

    ``patience``: seconds for which a batch that has begun waits for more; None: until it is full or all is there. No
    more than three batches are held, however many items there are. What ``items`` or ``work`` raise comes out here.
    """

    def __init__(
        self, items: Iterable[P], work: Callable[[P], R], batch: int, *, patience: float | None, threads: int
    ) -> None:
        self.items, self.work, self.batch, self.patience = items, work, batch, patience
        self.arrived: SimpleQueue[tuple[P, Future[R]] | End] = SimpleQueue()
        self.slots, self.stopped = threading.Semaphore(2 * batch), threading.Event()
        self.pool = ThreadPoolExecutor(threads)

    def __iter__(self) -> Iterator[list[tuple[P, R]]]:
        threading.Thread(target=self.feed, daemon=True).start()  # it may be waiting for a pipe that nobody closes
        try:
            end: End | None = None
            while end is None:
                part, end = self.next_part()
                if part:
                    self.slots.release(len(part))
                    yield [(item, future.result()) for item, future in part]
            if end.error is not None:
                raise end.error
        finally:
            self.stopped.set()
            self.slots.release()
            self.pool.shutdown(wait=False, cancel_futures=True)

    def feed(self) -> None:
        try:
            for item in self.items:
                self.slots.acquire()
                if self.stopped.is_set():
                    return
                self.arrived.put((item, self.pool.submit(self.work, item)))
            self.arrived.put(End(None))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that can report it
            self.arrived.put(End(error))

    def next_part(self) -> tuple[list[tuple[P, Future[R]]], End | None]:
        part: list[tuple[P, Future[R]]] = []
        while len(part) < self.batch:
            try:
                arrival = self.arrived.get(timeout=self.patience if part else None)
            except Empty:
                break
            if isinstance(arrival, End):
                return part, arrival
            part.append(arrival)
        return part, None
