"""One writer in a directory that can be stopped at any moment and leaves nothing half made behind; loads no library."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from unicl_cli.core.lock import lock_folder
from unicl_cli.errors import Stopped, UniclError

LOCK = ".lock"
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Stop:
    """SIGINT or SIGTERM came (``asked``). While ``polite``, who works looks at it; else it interrupts at once.

    ``owns``: the lock of ``out`` is held, so what lies there may be removed.
    """

    def __init__(self, out: Path, again: str) -> None:
        self.out, self.again = out, again
        self.asked = self.polite = self.owns = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def watched(self) -> Generator[None, None, None]:
        """In here the work looks at this object at each row."""
        self.polite = True
        try:
            yield
        finally:
            self.polite = False

    def on_signal(self, _number: int, _frame: object) -> None:
        if self.asked:
            self._leave_now()
        self.asked = True
        if self.polite:
            sys.stderr.write("stopping: shards that are not finished are dropped\n")
            return
        raise KeyboardInterrupt

    def stopped(self) -> Stopped:
        return Stopped("stopped before all shards were written", f"go on with: {self.again}")

    def _leave_now(self) -> None:
        """The second signal: something hangs, so nothing is waited for."""
        for child in multiprocessing.active_children():
            child.kill()
            child.join(1)
        if self.owns:
            remove_unfinished(self.out)
            (self.out / LOCK).unlink(missing_ok=True)
        error = self.stopped()
        sys.stderr.write(f"error: {error.message}\n  hint: {error.hint}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)


@contextmanager
def stoppable(out: Path, again: str) -> Generator[Stop, None, None]:
    """Ends in Stopped with the command that goes on, whenever SIGINT or SIGTERM comes: while libraries load, too."""
    stop = Stop(out, again)
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except (KeyboardInterrupt, Exception) as error:
        if not stop.asked or isinstance(error, Stopped):
            raise
        raise stop.stopped() from error
    finally:
        for number, handler in before.items():  # once stopped, all is said and done: a late signal changes no status
            signal.signal(number, signal.SIG_IGN if stop.asked else handler)


@contextmanager
def writing_into(stop: Stop) -> Generator[None, None, None]:
    """The directory of ``stop``, locked against a second writer. UniclError if it cannot be, or the disk gets full.

    Afterwards there is no lock, no temporary file and no empty directory that was not there before.
    """
    out = stop.out
    try:
        with lock_folder(out, LOCK, "choose another directory with -o"):
            stop.owns = True
            try:
                yield
            finally:
                remove_unfinished(out)
                with suppress(OSError):
                    (out / LOCK).unlink()  # while it is held: who opened it meanwhile sees that it has no name
                stop.owns = False
    except OSError as error:
        if mended := _mendable(out, error):
            raise mended from error
        raise


def remove_unfinished(out: Path) -> None:
    """Temporary files, and folders in which nothing is left."""
    for left in out.rglob("*.tmp"):
        left.unlink(missing_ok=True)
    _remove_empty([*(out / "data").glob("*"), *(out / name for name in ("data", "parts", "rejects"))])


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()


def _mendable(out: Path, error: OSError) -> UniclError | None:
    """A full disk, or a file that may not be read or written, as one line; None for anything else."""
    if error.errno in _FULL:
        return UniclError(f"{out}: {error.strerror}", "make room: the same command goes on from here")
    if error.filename and error.errno:
        return UniclError(f"{os.fsdecode(error.filename)}: {error.strerror}", "fix it: the same command goes on")
    return None
