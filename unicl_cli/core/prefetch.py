"""Prefetching: a thread makes batches and copies them to the device while an earlier step runs."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from unicl_cli.core.host_copy import to_device
from unicl_cli.core.image_cache import EncodedImages

T = TypeVar("T")
PATIENCE = 5.0
"""Seconds that the end of a training waits for the thread, which may itself be waiting for a worker."""


class _End(NamedTuple):
    error: BaseException | None


def prefetch(items: Iterator[T], depth: int = 1) -> Generator[T]:
    """Yield the same items in the same order, made by a thread that is up to ``depth`` + 1 items ahead.

    An exception of the thread is raised here. ``items`` must not draw from torch's default generator.
    """
    ready: Queue[T | _End] = Queue(depth)
    stopped = Event()

    def make() -> None:
        error = None
        try:
            for item in items:
                ready.put(item)
                if stopped.is_set():
                    return
        except BaseException as caught:  # raised again by the reader  # noqa: BLE001
            error = caught
        ready.put(_End(error))

    thread = Thread(target=make, daemon=True, name="batches")
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        stop_thread(thread, ready)


def stop_thread(thread: Thread, ready: "Queue[Any]") -> None:
    """Wait until a stopping thread has finished its item; abandon it if that takes too long."""
    until = time.monotonic() + PATIENCE
    while thread.is_alive() and time.monotonic() < until:
        with suppress(Empty):
            ready.get_nowait()  # makes room for the item that it may be putting
        thread.join(0.01)


def move_batches(
    batches: Iterator[tuple[int, T]], device: torch.device, change: Callable[[T, T], T]
) -> Generator[tuple[int, T]]:
    """Yield (step, batch) on ``device``, where ``change(batch, its copy)`` may change the copy.

    On CUDA a batch is copied from pinned memory and changed on a stream of its own, while the step before it runs.
    """
    if device.type != "cuda":
        for step, batch in batches:
            yield step, change(batch, to_device(batch, device))
        return
    side = torch.cuda.Stream(device)
    waiting: tuple[int, T, Any] | None = None
    for step, batch in batches:
        with torch.cuda.stream(side):
            moved = change(batch, to_device(batch, device))
            copied = side.record_event()
        if waiting is not None:
            yield _hand_over(*waiting)
        waiting = step, moved, copied
    if waiting is not None:
        yield _hand_over(*waiting)


def _hand_over(step: int, batch: T, copied: Any) -> tuple[int, T]:
    """Hand a batch over to the step's own stream, which waits for the copy and keeps its memory alive."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for x in tensors_of(batch):
        x.record_stream(stream)
    return step, batch


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield all tensors of a batch, at any depth."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, EncodedImages):
        yield batch.outputs
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors_of(value)
