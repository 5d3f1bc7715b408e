"""The lock of an output directory and the stop signals of `prepare`, with all unfinished files removed at the end.

It imports only light libraries: signals are caught before the heavy ones load.
"""

import errno
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from unicl_cli.errors import Stopped, UniclError, write_line
from unicl_cli.storage.files import remove_leftovers
from unicl_cli.storage.lock import lock_folder
from unicl_cli.storage.remote import RemotePath

LOCK = ".lock"
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Stop:
    """The stop flag: calling it returns whether SIGINT or SIGTERM has arrived.

    A signal interrupts at once, except inside ``defer_interrupts()``. ``again`` is the command that continues,
    ``writes`` whether it writes shards. ``is_locked`` means that the lock of ``out`` is held, ``may_remove`` that all
    checks of ``out`` have passed, so that unfinished files there may be removed.
    """

    def __init__(self, out: Path, again: str, *, writes: bool = True) -> None:
        self.out, self.again, self.writes = out, again, writes
        self.requested = self.is_deferred = self.is_locked = self.may_remove = False
        self.folders_before: set[Path] = set()

    def __call__(self) -> bool:
        return self.requested

    @contextmanager
    def defer_interrupts(self) -> Generator[None, None, None]:
        """Only set the flag inside this block, where the work checks it at every row."""
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False

    def on_signal(self, _number: int, _frame: object) -> None:
        """Stop at the first signal, exit at the second."""
        if self.requested:
            self._exit_now()
        self.requested = True
        if self.is_deferred:
            write_line("stopping: dropping unfinished shards")
            return
        raise KeyboardInterrupt

    def error(self) -> Stopped:
        """Return the error that ends a stopped command."""
        if not self.writes:
            return Stopped("stopped; nothing was written", f"run it again with: {self.again}")
        return Stopped("stopped before all shards were written", f"continue with: {self.again}")

    def clean_up(self) -> None:
        """Remove temporary files if that is allowed, and the empty folders that this command has made."""
        if self.may_remove:
            remove_unfinished(self.out)
        for made in _list_folders(self.out) if self.is_locked else ():
            if made not in self.folders_before:
                with suppress(OSError):  # not empty
                    made.rmdir()

    def _exit_now(self) -> None:
        """Exit without waiting: a second signal means that something hangs."""
        for child in multiprocessing.active_children():
            child.kill()
            child.join(1)
        if not isinstance(self.out, RemotePath):  # a store that hangs is left; a dead process holds no lock there
            self.clean_up()
            if self.is_locked:
                (self.out / LOCK).unlink(missing_ok=True)
        error = self.error()
        write_line(error.message)
        write_line(f"  {error.hint}")
        os._exit(error.exit_code)


@contextmanager
def catch_stop_signals(out: Path, again: str, *, writes: bool) -> Generator[Stop, None, None]:
    """Turn SIGINT and SIGTERM into Stopped, with the command that continues; also while libraries load."""
    stop = Stop(out, again, writes=writes)
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except (KeyboardInterrupt, Exception) as error:
        if not stop.requested or isinstance(error, Stopped):
            raise
        raise stop.error() from error
    finally:
        for number, handler in before.items():  # a late signal must not change the exit status
            signal.signal(number, signal.SIG_IGN if stop.requested else handler)


@contextmanager
def lock_output(stop: Stop) -> Generator[None, None, None]:
    """The directory of ``stop``, locked against a second writer. UniclError if it cannot be, or the disk gets full.

    Afterwards there is no lock, no temporary file and no empty directory that was not there before.
    """
    out = stop.out
    try:
        with lock_folder(out, LOCK, "choose another directory with -o"):
            stop.is_locked, stop.folders_before = True, set(_list_folders(out))
            try:
                yield
            finally:
                stop.clean_up()
                with suppress(OSError):
                    (out / LOCK).unlink()  # while it is held: who opened it meanwhile sees that it has no name
                stop.is_locked = stop.may_remove = False
    except OSError as error:
        if explained := _explain_os_error(out, error):
            raise explained from error
        raise


def remove_unfinished(out: Path) -> None:
    """Remove the temporary files that a killed `prepare` left in the folders it writes into, and nothing else."""
    for folder in (out, *_list_folders(out)):
        remove_leftovers(folder)


def _list_folders(out: Path) -> list[Path]:
    """List the folders that `prepare` makes in ``out``, the inner ones first; links lead to the user's own places.

    A store of objects has none.
    """
    if isinstance(out, RemotePath):
        return []
    found = [*(out / "data").glob("*"), *(out / name for name in ("data", "parts", "rejects"))]
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


def _explain_os_error(out: Path, error: OSError) -> UniclError | None:
    """Return an error with a hint for a full disk or an unreadable file; None for anything else."""
    if error.errno in _FULL and isinstance(out, RemotePath):
        hint = "free some space there, or set TMPDIR to a folder on another disk, then run the same command again"
        return UniclError(f"{tempfile.gettempdir()}: {error.strerror}", hint)
    if error.errno in _FULL:
        return UniclError(f"{out}: {error.strerror}", "free some space, then run the same command again to continue")
    if error.filename and error.errno:
        return UniclError(
            f"{os.fsdecode(error.filename)}: {error.strerror}", "fix it, then run the same command again to continue"
        )
    return None
