"""One writer in a directory that can be stopped at any moment and leaves nothing half made behind; loads no library."""

import errno
import multiprocessing
import os
import platform
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

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
    def deferred(self) -> Generator[None, None, None]:
        """In here the work looks at this object at each row."""
        self.polite = True
        try:
            yield
        finally:
            self.polite = False

    def on_signal(self, _number: int, _frame: object) -> None:
        if self.asked:
            self._exit_now()
        self.asked = True
        if self.polite:
            sys.stderr.write("stopping: shards that are not finished are dropped\n")
            return
        raise KeyboardInterrupt

    def error(self) -> Stopped:
        return Stopped("stopped before all shards were written", f"go on with: {self.again}")

    def _exit_now(self) -> None:
        """The second signal: something hangs, so nothing is waited for."""
        for child in multiprocessing.active_children():
            child.kill()
            child.join(1)
        if self.owns:
            remove_unfinished(self.out)
            (self.out / LOCK).unlink(missing_ok=True)
        error = self.error()
        sys.stderr.write(f"error: {error.message}\n  hint: {error.hint}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)


@contextmanager
def catch_stop_signals(out: Path, again: str) -> Generator[Stop, None, None]:
    """Ends in Stopped with the command that goes on, whenever SIGINT or SIGTERM comes: while libraries load, too."""
    stop = Stop(out, again)
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except (KeyboardInterrupt, Exception) as error:
        if not stop.asked or isinstance(error, Stopped):
            raise
        raise stop.error() from error
    finally:
        for number, handler in before.items():  # once stopped, all is said and done: a late signal changes no status
            signal.signal(number, signal.SIG_IGN if stop.asked else handler)


@contextmanager
def writing_into(stop: Stop) -> Generator[None, None, None]:
    """The directory of ``stop``, locked against a second writer. UniclError if it cannot be, or the disk gets full.

    Afterwards there is no lock, no temporary file and no empty directory that was not there before.
    """
    out = stop.out
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = FileLock(out / LOCK)
    try:
        _take(lock, out)
        stop.owns = True
        yield
    except OSError as error:
        if mended := _explain_os_error(out, error):
            raise mended from error
        raise
    finally:
        if lock.is_locked:
            remove_unfinished(out)
            with suppress(OSError):
                (out / LOCK).unlink()  # while it is held: who opened it meanwhile sees that it has no name
            stop.owns = False
            lock.release()
        _remove_empty(made)


def _take(lock: FileLock, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UniclError(f"{out}: locked by {_holder(out)}", "wait for it, or choose another -o") from error
    except OSError as error:
        raise UniclError(f"{out}: cannot be written: {error.strerror}", "choose another directory with -o") from error
    with suppress(OSError):  # who holds it is a courtesy; the lock is the operating system's
        (out / LOCK).write_text(f"pid {os.getpid()} on {platform.node()}\n", encoding="utf-8")


def remove_unfinished(out: Path) -> None:
    """Temporary files, and folders in which nothing is left."""
    for left in out.rglob("*.tmp"):
        left.unlink(missing_ok=True)
    _remove_empty([*(out / "data").glob("*"), *(out / name for name in ("data", "parts", "rejects"))])


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()


def _holder(out: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        if line := (out / LOCK).read_text(encoding="utf-8").strip():
            return line
    return "another prepare"


def _explain_os_error(out: Path, error: OSError) -> UniclError | None:
    """A full disk, or a file that may not be read or written, as one line; None for anything else."""
    if error.errno in _FULL:
        return UniclError(f"{out}: {error.strerror}", "make room: the same command goes on from here")
    if error.filename and error.errno:
        return UniclError(f"{os.fsdecode(error.filename)}: {error.strerror}", "fix it: the same command goes on")
    return None
