"""A folder that one process at a time writes into, and that holds nothing of the user's."""

import os
import platform
import re
import stat
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from unicl_cli.core.files import is_leftover, make_folder, read_regular
from unicl_cli.errors import UniclError

_HOLDER = re.compile(r"unicl: pid \d+ on .*\n?")
"""The line of a lock, with a word that other programs do not write."""
_MOST = 1000
"""Bytes of the longest lock file."""


def check_unused(folder: Path, hint: str, is_own: Callable[[Path], bool] = is_leftover) -> None:
    """Raise UniclError unless ``folder`` is new, empty, or holds only what an interrupted command of unicl left.

    ``is_own`` tells that of each file and folder in it. Nothing is written or removed.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            what = "is a file, not a directory" if folder.is_file() else "is not a directory"
            raise UniclError(f"{folder}: {what}", hint)
        return
    try:
        foreign = sorted(path.name for path in folder.iterdir() if not (is_leftover(path) or is_own(path)))
    except OSError as error:
        raise UniclError(f"{folder}: cannot be read: {error.strerror}", hint) from error
    if foreign:
        more = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
        raise UniclError(f"{folder}: contains other files ({foreign[0]}{more})", hint)


def is_lock(path: Path) -> bool:
    """Return whether a file is a lock that `lock_folder` made, held or not: other programs' files say other things."""
    return _is_alone(path) and (not path.stat().st_size or names_holder(path))


def _is_alone(path: Path) -> bool:
    """Return whether a path is a regular file without a second name, which may be the user's."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def names_holder(path: Path) -> bool:
    """Return whether a lock file names the process that locked it last."""
    return _HOLDER.fullmatch(_read_lock(path)) is not None


def _read_lock(path: Path) -> str:
    try:
        return read_regular(path, _MOST).decode("utf-8", "replace")
    except OSError:
        return ""


@contextmanager
def lock_folder(folder: Path, name: str, hint: str) -> Generator[None]:
    """Make ``folder`` and hold the lock file ``name`` in it; do not wait for another process.

    UniclError if another process holds it, or if the folder cannot be written; ``hint`` says how to choose another one.
    The file stays unless the caller removes it while the lock is held. Folders made here go if they are empty then.
    """
    path = folder / name
    with ExitStack() as at_end:
        try:
            at_end.enter_context(make_folder(folder))
            if os.path.lexists(path) and not _is_alone(path):
                raise UniclError(f"{path}: a link, or not a file, in the place of the lock", f"move it away, or {hint}")
            at_end.enter_context(FileLock(path).acquire(timeout=0))
        except Timeout as error:
            raise UniclError(f"{folder}: locked by {_holder(path)}", f"wait for it, or {hint}") from error
        except OSError as error:
            raise UniclError(f"{folder}: cannot be written: {error.strerror}", hint) from error
        with suppress(OSError):  # for the message above only: the lock itself is the operating system's
            path.write_text(f"unicl: pid {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield


def _holder(path: Path) -> str:
    return _read_lock(path).strip().removeprefix("unicl: ") or "another process"
