"""The checkpoints of a run, written by a thread of rank 0 while the training continues."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unicl_cli.core.checkpoint import WRITING_FAILS, raise_on_all_ranks, state_of, wait_for_copies, write
from unicl_cli.core.checkpoint_files import (
    BEST,
    LATEST,
    delete,
    folder_of,
    is_own,
    list_folders,
    prune,
    read_pointer,
    step_of,
)
from unicl_cli.core.dist import barrier, rank
from unicl_cli.formats import byte_size
from unicl_cli.storage.files import remove_leftovers, write_atomic


class Saver:
    """A writer of checkpoints under ``root``. `save` returns once the state is copied; there is one copy at a time.

    A write that failed raises on all ranks at their next `save` or `join`; `failed` tells rank 0 of it before.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep: int,
        keep_every: int | None,
        asynchronous: bool,
        step: int | None,
        say: Callable[[str], None],
    ) -> None:
        self.root, self.keep, self.keep_every, self.asynchronous = root, keep, keep_every, asynchronous
        self.step = step  # of the newest checkpoint here that was loaded or written
        self.say = say
        self.measured = False
        self.warned: set[str] = set()
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.work: list[Future[None]] = []

    def save(
        self,
        module: nn.Module,
        optimizer: Any,
        facts: Mapping[str, Any],
        average: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save a checkpoint of ``facts["step"]``; the same step twice costs nothing. All ranks call it."""
        if self.step == facts["step"]:
            return
        self.join()
        files = state_of(module, optimizer, average, copy=self.asynchronous)
        self.step = int(facts["step"])
        if rank() == 0:
            if not self.measured:
                self.check_space(sum(x.nbytes for tensors in files.values() for x in tensors.values()))
            self.submit(partial(self.write, files, dict(facts)))
        if not self.asynchronous:
            self.join()

    def write(self, files: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Write the files of a checkpoint and delete old ones; runs in the thread."""
        wait_for_copies(files)
        write(self.root, files, facts)
        self.warn(prune(self.root, self.keep, self.keep_every))

    def warn(self, warnings: Iterable[str]) -> None:
        """Say each warning once: a checkpoint that cannot be deleted stays so at every save."""
        for warning in warnings:
            if warning not in self.warned:
                self.warned.add(warning)
                self.say(f"warning: {warning}")

    def name_newest(self, name: str) -> None:
        """Let the file ``name`` (best) point to the newest checkpoint once that is whole; rank 0 calls it."""
        if self.step is not None:
            self.submit(partial(self.write_pointer, name, folder_of(self.root, self.step)))

    def write_pointer(self, name: str, target: Path) -> None:
        """Write a pointer; runs in the thread, after the checkpoint."""
        if target.is_dir():
            write_atomic(self.root / name, target.name)

    def submit(self, work: Callable[[], None]) -> None:
        """Give work to the thread, which does it in order."""
        self.work.append(self.pool.submit(work))

    def failed(self) -> bool:
        """Return True if the thread has met an error by now."""
        return any(job.done() and job.exception() is not None for job in self.work)

    def join(self) -> None:
        """Wait for all writes; every rank calls it, and raises if rank 0's thread did."""
        problems = [job.exception() for job in self.work]
        self.work = []
        problem = next((error for error in problems if error is not None), None)
        if problem is not None and not isinstance(problem, WRITING_FAILS):
            raise problem
        raise_on_all_ranks(folder_of(self.root, self.step or 0), problem)

    def close(self) -> None:
        """Wait for all writes without asking the other ranks: a training that ends by an error may have lost them."""
        self.pool.shutdown()

    def go_back_to(self, folder: Path) -> None:
        """Make ``folder`` the newest checkpoint: delete the later ones, and ``best`` if it pointed to one of them."""
        self.join()
        if rank() == 0:
            write_atomic(self.root / LATEST, folder.name)
            later = [other for other in list_folders(self.root) if step_of(other) > step_of(folder)]
            self.warn(delete([other for other in later if is_own(other)]))
            if not (self.root / (read_pointer(self.root / BEST) or folder.name)).is_dir():
                (self.root / BEST).unlink()
            remove_leftovers(self.root)
        barrier()
        self.step = step_of(folder)

    def check_space(self, size: int) -> None:
        """Warn if the disk cannot hold the checkpoints to keep, the one being written and one to spare."""
        self.measured = True
        own = filter(is_own, list_folders(self.root))
        held = sum(file.stat().st_size for folder in own for file in folder.iterdir())
        needed = (self.keep + 2) * size - held
        free = shutil.disk_usage(next(p for p in (self.root, *self.root.parents) if p.exists())).free
        if free < needed:
            self.say(
                f"warning: {self.root}: {byte_size(free)} free, but its checkpoints ({byte_size(size)} each) "
                f"will need {byte_size(needed)}: free some space or lower checkpoint.keep"
            )
