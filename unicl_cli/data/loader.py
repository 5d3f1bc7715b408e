"""The loader: workers decode chunks of rows, and the training process joins them to batches."""

import os
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
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
from unicl_cli.data.mix import BOTH, At, Draws, MixedCorpora, OnePass
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.launch.stopping import stop_signals

CHUNK = 128
"""Maximum number of rows of a chunk, which one worker makes: 19 MB at 224 pixels."""
LEAST_CHUNK = 16
AHEAD = 512_000_000
"""Bytes that all workers of a process together keep ready or are sending."""
MOST_AHEAD = 16
"""Maximum number of chunks that a worker keeps ready, however small they are."""
SHARED = Path("/dev/shm")


class Chunk(NamedTuple):
    """Neighbouring rows of a batch: their images as one array, and the other fields of each row's Drawn by name."""

    images: Tensor | NDArray[np.uint8]
    rows: list[dict[str, Any]]


def split_image(row: Drawn) -> tuple[Tensor, dict[str, Any]]:
    """Return a sample's image, and its other fields by name."""
    fields = row._asdict()
    return fields.pop("image"), fields


def attach_image(fields: Mapping[str, Any], image: Tensor) -> Drawn:
    """Return the sample that ``split_image`` took apart, with ``image`` as its image."""
    return Drawn(image=image, **fields)


class Chunks(Dataset["Chunk | UniclError"]):
    """Chunks of a mix, addressed by the places of their rows.

    A UniclError that the mix raises is returned, not raised: torch would bury its one line in a worker's traceback.
    """

    def __init__(self, mix: MixedCorpora, *, shared: bool) -> None:
        self.mix, self.shared = mix, shared

    def __getitem__(self, places: Sequence[At]) -> Chunk | UniclError:
        try:
            self.mix.prefetch(places)
            pairs = [split_image(self.mix[at]) for at in places]
        except UniclError as error:
            return error
        images = torch.stack([image for image, _ in pairs])
        return Chunk(share_images(images) if self.shared else images.numpy(), [fields for _, fields in pairs])


def share_images(images: Tensor) -> Tensor | NDArray[np.uint8]:
    """Move images into shared memory; if it is full, return them as an array, which goes through a pipe.

    If torch moved them, it would fail in a thread of the worker, and the training process would wait forever.
    """
    try:
        return images.share_memory_()
    except RuntimeError:
        return images.numpy()


class ChunkedDraws:
    """A sampler of chunks: the lists of ``draws``, each cut into pieces of ``size`` rows."""

    def __init__(self, draws: Draws | OnePass, size: int) -> None:
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
    """The way workers hand over their chunks: how many each keeps ready, by shared memory or by a pipe."""

    chunks: int
    shared: bool


def chunk_rows(rows: int, workers: int) -> int:
    """Return the rows of a chunk: all workers make a batch of ``rows`` together, unless it is small."""
    return rows if workers == 0 else min(rows, CHUNK, max(LEAST_CHUNK, -(-rows // workers)))


def choose_supply(chunk: int, workers: int, free: int | None) -> Supply:
    """Return the way for chunks of ``chunk`` bytes with ``free`` bytes of shared memory (None: no known limit).

    If that is too little (a container's 64 MB), images go through a pipe, which copies them once more.
    """
    ready = max(2, min(MOST_AHEAD, AHEAD // max(1, chunk * workers)))
    if free is None:
        return Supply(ready, shared=True)
    fitting = free // max(1, chunk * workers) - 1  # one more of each is on its way
    return Supply(min(ready, fitting), shared=True) if fitting >= 2 else Supply(ready, shared=False)


def free_shared_memory() -> int | None:
    """Return the bytes of shared memory that this process may fill: its share of three quarters of the free ones."""
    if not SHARED.is_dir():
        return None
    found = os.statvfs(SHARED)
    return found.f_bavail * found.f_frsize * 3 // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def start_worker(worker: int) -> None:
    """Set up a worker: it decodes on one core and obeys a SIGTERM only from the training process."""
    del worker
    torch.set_num_threads(1)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        Thread(target=exit_on_sigterm, daemon=True).start()


def exit_on_sigterm() -> None:
    """Leave this worker once the training process sends SIGTERM, which is blocked here.

    Otherwise a training process that ends by an exception would wait forever for workers that it cannot terminate.
    """
    trainer = parent_process()
    while trainer is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer.pid:
        pass  # sent to the whole process group: the trainer handles it, and needs its workers until then
    os._exit(0)


@contextmanager
def block_stop_signals() -> Generator[None]:
    """Block stop signals in the processes that start inside: a signal may reach the whole process group.

    The training process handles the signal at the end of its step, and needs its workers until then.
    """
    stops = {signal.SIGTERM, *stop_signals()}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        resource_tracker.ensure_running()  # its process ignores them too; it unblocks two of them in this one
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def load_chunks(mix: MixedCorpora, draws: Draws | OnePass, workers: int) -> tuple[Iterator[Chunk | UniclError], int]:
    """Start the workers; return all chunks in order, and how many make a batch."""
    rows = chunk_rows(draws.rows, workers)
    way = choose_supply(rows * mix.row_bytes, workers, free_shared_memory()) if workers else Supply(0, shared=False)
    places = ChunkedDraws(draws, rows)
    loader = DataLoader(
        Chunks(mix, shared=way.shared),
        sampler=places,
        batch_size=None,
        num_workers=workers,
        collate_fn=cast("Any", keep_chunk),
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=way.chunks if workers else None,
        worker_init_fn=start_worker if workers else None,
    )
    with block_stop_signals():
        return iter(loader), places.in_a_batch


def keep_chunk(chunk: Chunk | UniclError) -> Chunk | UniclError:
    """Return a chunk as it is: torch's own collate would convert its arrays."""
    return chunk


def join_chunks(chunks: Iterator[Chunk | UniclError], rows: int, *, pin_memory: bool) -> tuple[list[Drawn], Tensor]:
    """Return the ``rows`` samples of the chunks and their images, each copied at most once; raise their UniclError."""
    images = torch.empty(0)
    fields: list[dict[str, Any]] = []
    for chunk in chunks:
        if isinstance(chunk, UniclError):
            raise chunk
        part = torch.as_tensor(chunk.images)
        if len(part) == rows and not pin_memory:
            images = part
        else:
            if not fields:
                images = torch.empty((rows, *part.shape[1:]), dtype=part.dtype, pin_memory=pin_memory)
            images[len(fields) : len(fields) + len(part)] = part
        fields += chunk.rows
    return [attach_image(of, image) for of, image in zip(fields, images, strict=True)], images


def pin_batch(batch: Batch) -> Batch:
    """Pin a batch, so that its copy to a GPU runs in the background; pinned tensors stay where they are."""
    extra = {name: x.pin_memory() for name, x in batch.extra.items()}
    return batch._replace(extra=extra, **{name: getattr(batch, name).pin_memory() for name in Batch._fields[:-1]})


def batches(
    mix: MixedCorpora,
    draws: Draws,
    tokenizer: TextTokenizer | None,
    *,
    caption_targets: str,
    extra: Hook | None,
    distinct: bool,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, Batch) for each step that ``draws`` covers; the same batches for any number of ``workers``.

    Workers decode images. This process tokenises the distinct texts and calls the hooks, once for the whole share.
    Rows carry their media only if ``extra`` has a hook.
    """
    chunks, in_a_batch = load_chunks(mix.with_media() if extra else mix, draws, workers)
    both = mix.texts.labelled == BOTH
    together = partial(
        collate, tokenizer=tokenizer, caption_targets=caption_targets, extra=extra, distinct=distinct, two_texts=both
    )
    for step in range(draws.start, draws.steps):
        with explain_worker_death():
            drawn, images = join_chunks(islice(chunks, in_a_batch), draws.rows, pin_memory=pin_memory)
        batch = together(drawn, images)
        yield step, pin_batch(batch) if pin_memory else batch


def load_images(mix: MixedCorpora, places: OnePass, workers: int, *, pin_memory: bool) -> Iterator[Tensor]:
    """Yield the images of each list of ``places``."""
    chunks, in_a_batch = load_chunks(mix, places, workers)
    for each in places:
        with explain_worker_death():
            yield join_chunks(islice(chunks, in_a_batch), len(each), pin_memory=pin_memory)[1]


@contextmanager
def explain_worker_death() -> Generator[None]:
    """Turn torch's error for a worker that the system has killed into one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        line = " ".join(str(error).split())
        hint = "lower data.workers if memory is short"
        raise UniclError(f"data.workers: a loader worker died: {line}", hint) from error
