"""A folder that one process at a time writes into, and that holds nothing of the user's."""

import errno
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from unicl_cli.errors import UniclError, write_note
from unicl_cli.formats import format_age, format_duration
from unicl_cli.storage.files import is_leftover, make_folder
from unicl_cli.storage.holder import STALE_SECONDS, Holder, describe_self, read_age, read_holder, show_life
from unicl_cli.storage.remote import RemotePath

_WITHOUT_LOCKS = frozenset((errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP))
"""Answers of file systems on which the operating system locks nothing."""
_SETTLE = 1.0
"""Seconds after which an object that two processes wrote at the same moment has its last content."""


def check_unused(folder: Path, hint: str, is_own: Callable[[Path], bool] = is_leftover) -> None:
    """Raise UniclError unless ``folder`` is new, empty, or holds only what an interrupted command of unicl left.

    ``is_own`` says so for each file and folder in it. Nothing is written or removed.
    """
    if not folder.is_dir():
        if folder.is_file() or os.path.lexists(folder):
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
    return read_holder(path) is not None


@contextmanager
def lock_folder(folder: Path, name: str, hint: str) -> Generator[None]:
    """Make ``folder`` and hold the lock file ``name`` in it; do not wait for another process.

    UniclError if another process holds it, or if the folder cannot be written; ``hint`` says how to choose another one.
    The lock of a process on this machine is the operating system's. That of another machine is free once it gave no
    sign of life for STALE_SECONDS, even if its operating system's lock stays: such a machine is gone.
    The file stays unless the caller removes it while the lock is held. Folders made here go if they are empty then.
    """
    path, me = folder / name, describe_self()
    with ExitStack() as at_end:
        try:
            if isinstance(folder, RemotePath):
                note = _claim(path, hint, others_are_gone=False)
            else:
                at_end.enter_context(make_folder(folder))
                if os.path.lexists(path) and not _is_alone(path):
                    raise UniclError(
                        f"{path}: a link, or not a file, in the place of the lock", f"move it away, or {hint}"
                    )
                note = _lock_file(path, hint, at_end)
            at_end.enter_context(show_life(path, me))
            if isinstance(folder, RemotePath):
                _check_alone(path, me, hint)
        except OSError as error:
            way = f"check the address and your rights, or {hint}" if isinstance(folder, RemotePath) else hint
            raise UniclError(f"{folder}: cannot be written: {error.strerror}", way) from error
        if note:
            write_note(note)
        yield


def _lock_file(path: Path, hint: str, at_end: ExitStack) -> str | None:
    """Take the operating system's lock of a file until ``at_end``; return a note if it was another machine's.

    UniclError if another process holds it. OSError.
    """
    try:
        is_locked = _acquire(path, at_end)
    except Timeout as error:
        holder = read_holder(path)
        if holder is None or holder.ended or not holder.mark or holder.shares_system():
            raise _refuse(path, holder, hint) from error
        note = _claim(path, hint, others_are_gone=False)
        path.unlink(missing_ok=True)  # a server may keep the lock of a dead machine, which is on this file
        try:
            _acquire(path, at_end)
        except Timeout as error:
            raise _refuse(path, read_holder(path), hint) from error
        return note
    return _claim(path, hint, others_are_gone=is_locked)


def _acquire(path: Path, at_end: ExitStack) -> bool:
    """Lock a file until ``at_end``; False on a file system without locks. Timeout if it is locked; OSError."""
    try:
        at_end.enter_context(FileLock(path, fallback_to_soft=False).acquire(timeout=0))
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return False
    return True


def _claim(path: Path, hint: str, *, others_are_gone: bool) -> str | None:
    """Return None if a lock is free by what its file says, or a note if its holder is taken for dead; else UniclError.

    ``others_are_gone``: no other process of this system holds it, nor an older unicl on another one.
    """
    holder = read_holder(path)
    if holder is None or holder.ended or (holder.is_visible() and not holder.is_alive()):
        return None
    if others_are_gone and (holder.shares_system() or not holder.mark):
        return None
    age = read_age(path)
    if age is None or age < STALE_SECONDS:
        raise _refuse(path, holder, hint, age)
    return f"{path.parent}: took over the lock of {holder}, whose last sign of life was {format_age(age)} ago"


def _check_alone(path: Path, me: Holder, hint: str) -> None:
    """Raise UniclError if another process has written its lock at the same moment: the last one has it."""
    time.sleep(_SETTLE)
    holder = read_holder(path)
    if holder != me:
        raise _refuse(path, holder, hint)


def _refuse(path: Path, holder: Holder | None, hint: str, age: float | None = None) -> UniclError:
    """Return the error for a lock that another process holds; ``age`` is that of its last sign of life."""
    said, way = f"{path.parent}: locked by {holder or 'another process'}", f"wait for it, or {hint}"
    if holder is None or holder.is_visible() or (age is None and holder.shares_system()):
        return UniclError(said, way)
    if age is None:
        return UniclError(said, f"{way}; if that machine is gone, remove {path}")
    left = format_duration(STALE_SECONDS - age + 1)
    return UniclError(
        f"{said}, last sign of life {format_age(age)} ago",
        f"{way}; if that machine is gone, run the same command again in {left}",
    )
