"""Draws to batches: chunks of rows that workers make, put together in the training process."""

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import parent_process, resource_tracker
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unicl_cli.contracts import Batch, Drawn
from unicl_cli.data.collate import Hook, collate
from unicl_cli.data.mix import At, Draws, Mix
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.launch.stopping import stop_signals

CHUNK = 128
"""Rows that a worker makes at once, at most: 19 MB at 224 pixels."""
LEAST_CHUNK = 16
AHEAD = 512_000_000
"""Bytes of images that the workers of a process keep ready, or on their way."""
MOST_AHEAD = 16
"""Chunks of each worker, however small they are."""
SHARED = Path("/dev/shm")


class Chunk(NamedTuple):
    """Neighbouring rows of a batch: their images, and each row's Drawn without its image."""

    images: Tensor | NDArray[np.uint8]
    rows: list[tuple[Any, ...]]


class Chunks(Dataset["Chunk | UniclError"]):
    """Chunks of a mix, addressed by the places of their rows.

    Gives a UniclError back where the mix raises it: torch would bury its one line in a worker's traceback.
    """

    def __init__(self, mix: Mix, *, shared: bool) -> None:
        self.mix, self.shared = mix, shared

    def __getitem__(self, places: Sequence[At]) -> Chunk | UniclError:
        try:
            drawn = [self.mix[at] for at in places]
        except UniclError as error:
            return error
        images = torch.stack([row.image for row in drawn])
        rows = [(*row[:3], *row[4:]) for row in drawn]
        return Chunk(shared_or_not(images) if self.shared else images.numpy(), rows)


def shared_or_not(images: Tensor) -> Tensor | NDArray[np.uint8]:
    """In shared memory; where others have filled it meanwhile, an array, which a pipe takes.

    Left to torch, the lack would be met in a thread of the worker, and the trainer would wait forever.
    """
    try:
        return images.share_memory_()
    except RuntimeError:
        return images.numpy()


class ChunkedDraws:
    """The lists of ``draws``, each cut into chunks."""

    def __init__(self, draws: Draws, size: int) -> None:
        self.draws, self.size = draws, size

    @property
    def in_a_batch(self) -> int:
        return -(-self.draws.rows // self.size)

    def __len__(self) -> int:
        return len(self.draws) * self.in_a_batch

    def __iter__(self) -> Iterator[list[At]]:
        for places in self.draws:
            for start in range(0, len(places), self.size):
                yield places[start : start + self.size]


class Supply(NamedTuple):
    """How workers hand over: chunks that each has ready, and whether by shared memory or by a pipe."""

    chunks: int
    shared: bool


def chunk_rows(rows: int, workers: int) -> int:
    """Rows of a chunk: all workers together make a batch of ``rows``, unless it is small."""
    return rows if workers == 0 else min(rows, CHUNK, max(LEAST_CHUNK, -(-rows // workers)))


def supply(chunk: int, workers: int, free: int | None) -> Supply:
    """For chunks of ``chunk`` bytes, with ``free`` bytes of shared memory for this process; None: no limit is known.

    Where it is too small (a container's 64 MB), images take a pipe, which copies them once more.
    """
    ready = max(2, min(MOST_AHEAD, AHEAD // max(1, chunk * workers)))
    if free is None:
        return Supply(ready, shared=True)
    fitting = free // max(1, chunk * workers) - 1  # one more of each is on its way
    return Supply(min(ready, fitting), shared=True) if fitting >= 2 else Supply(ready, shared=False)


def shared_memory() -> int | None:
    """Bytes of shared memory that this process may fill: its share of three quarters of what is free."""
    if not SHARED.is_dir():
        return None
    found = os.statvfs(SHARED)
    return found.f_bavail * found.f_frsize * 3 // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def begin_worker(worker: int) -> None:
    """Workers share the cores: each decodes on one. SIGTERM is blocked in them, and heeded if the trainer sent it."""
    del worker
    torch.set_num_threads(1)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        Thread(target=end_when_told, daemon=True).start()


def end_when_told() -> None:
    """Without it a trainer that ends by an exception would wait forever for workers that it cannot terminate."""
    trainer = parent_process()
    while trainer is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer.pid:
        pass  # sent to the whole process group: the trainer answers it, and needs its workers until then
    os._exit(0)


@contextmanager
def stops_blocked() -> Generator[None]:
    """Processes started inside never hear of a stop, which may reach a whole process group.

    The training process answers it at the end of its step, and needs its workers until then.
    """
    stops = {signal.SIGTERM, *stop_signals()}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        resource_tracker.ensure_running()  # its process hears nothing either; it unblocks two of them in this one
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def chunks_of(mix: Mix, draws: Draws, workers: int) -> tuple[Iterator[Chunk | UniclError], int]:
    """All chunks in order, and how many make a batch."""
    rows = chunk_rows(draws.rows, workers)
    way = supply(rows * mix.picture_bytes, workers, shared_memory()) if workers else Supply(0, shared=False)
    places = ChunkedDraws(draws, rows)
    loader = DataLoader(
        Chunks(mix, shared=way.shared),
        sampler=places,
        batch_size=None,
        num_workers=workers,
        collate_fn=cast("Any", as_it_is),
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=way.chunks if workers else None,
        worker_init_fn=begin_worker if workers else None,
    )
    with stops_blocked():
        return iter(loader), places.in_a_batch


def as_it_is(chunk: Chunk | UniclError) -> Chunk | UniclError:
    """In place of torch's conversion of arrays."""
    return chunk


def joined(chunks: Iterator[Chunk | UniclError], rows: int, *, pin_memory: bool) -> tuple[list[Drawn], Tensor]:
    """The ``rows`` samples of some chunks and their images, each copied once at most; UniclError is raised."""
    images = torch.empty(0)
    lines: list[tuple[Any, ...]] = []
    for chunk in chunks:
        if isinstance(chunk, UniclError):
            raise chunk
        part = torch.as_tensor(chunk.images)
        if len(part) == rows and not pin_memory:
            images = part
        else:
            if not lines:
                images = torch.empty((rows, *part.shape[1:]), dtype=part.dtype, pin_memory=pin_memory)
            images[len(lines) : len(lines) + len(part)] = part
        lines += chunk.rows
    return [Drawn._make((*line[:3], image, *line[3:])) for line, image in zip(lines, images, strict=True)], images


def pinned(batch: Batch) -> Batch:
    """What a copy to a GPU can be at work on while this process goes on; what is pinned already stays where it is."""
    extra = {name: x.pin_memory() for name, x in batch.extra.items()}
    return batch._replace(extra=extra, **{name: getattr(batch, name).pin_memory() for name in Batch._fields[:-1]})


def batches(
    mix: Mix,
    draws: Draws,
    tokenizer: TextTokenizer | None,
    *,
    caption_targets: str,
    extra: Hook | None,
    distinct: bool,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[int, Batch]]:
    """(step, Batch) for each step that ``draws`` covers; the same batches for any number of ``workers``.

    Workers decode; texts are told apart and tokenised, and hooks called, for the whole share in this process.
    """
    chunks, in_a_batch = chunks_of(mix, draws, workers)
    together = partial(collate, tokenizer=tokenizer, caption_targets=caption_targets, extra=extra, distinct=distinct)
    for step in range(draws.start, draws.steps):
        with worker_deaths():
            drawn, images = joined(islice(chunks, in_a_batch), draws.rows, pin_memory=pin_memory)
        batch = together(drawn, images)
        yield step, pinned(batch) if pin_memory else batch


@contextmanager
def worker_deaths() -> Generator[None]:
    """A worker that the system has killed is one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        line = " ".join(str(error).split())
        raise UniclError(f"a loader worker has ended: {line}", "short of memory? lower data.workers") from error
