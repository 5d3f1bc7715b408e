"""The holder of a lock: its line in the lock file, its signs of life, and the age from which another may take over.

The times that are compared are all those of the file system or store, so that clocks of machines need not agree.
"""

import os
import platform
import re
import secrets
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from unicl_cli.errors import UniclError, write_line
from unicl_cli.storage.files import read_regular, temporary_name, write_atomic
from unicl_cli.storage.remote import RemotePath

BEAT_SECONDS = 15.0
"""Time between two signs of life of a holder."""
STALE_SECONDS = 120.0
"""Age of the last sign from which the lock of a process on another machine may be taken over."""
_FIRST_BEAT = 1.0
_LINE = re.compile(r"unicl: pid (\d+) on (.*?)(?: \(([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{8})(, ended)?\))?\n?")
"""The line of a lock, with a word that other programs do not write; the mark in brackets came later."""
_MOST = 1000
"""Bytes of the longest lock file."""


class Holder(NamedTuple):
    """A process that holds a lock, or held it until it ``ended``.

    ``mark`` is in hex: its system since the last start, the process numbers that it sees, and its own. An older unicl
    wrote no mark, and gives no sign of life.
    """

    pid: int
    host: str
    mark: str
    ended: bool = False

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    def as_line(self) -> str:
        """Return the content of the lock file."""
        return f"unicl: {self} ({self.mark}{', ended' if self.ended else ''})\n"

    def shares_system(self) -> bool:
        """Return whether its operating system is this process's, also in another container: one list of locks."""
        return self.mark.startswith(f"{_mark_system()}-")

    def is_visible(self) -> bool:
        """Return whether its number means the same process here."""
        if not self.mark:
            return self.host == platform.node()
        return self.mark.startswith(f"{_mark_system()}-{_mark_numbers()}-")

    def is_alive(self) -> bool:
        """Return whether a process that is visible from here has its number."""
        if not self.is_visible():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return True


@cache
def _mark_system() -> str:
    """Return a mark of this operating system since its last start."""
    with suppress(OSError):
        return _hash(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), 4)
    return _hash(f"{platform.node()}/{uuid.getnode()}", 4)


@cache
def _mark_numbers() -> str:
    """Return a mark of the process numbers of this container."""
    with suppress(OSError):
        return _hash(os.readlink("/proc/self/ns/pid"), 2)  # noqa: PTH115 - the text of a link that leads to no file
    return _hash("", 2)


def _hash(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()


def describe_self() -> Holder:
    """Return this process as a new holder."""
    return Holder(os.getpid(), platform.node(), f"{_mark_system()}-{_mark_numbers()}-{secrets.token_hex(4)}")


def read_holder(path: Path) -> Holder | None:
    """Return the last holder that a lock file names; None if it is missing, empty or another program's."""
    try:
        text = read_regular(path, _MOST).decode("utf-8", "replace")
    except OSError:
        return None
    found = _LINE.fullmatch(text)
    return Holder(int(found[1]), found[2], found[3] or "", bool(found[4])) if found else None


def read_age(path: Path) -> float | None:
    """Return the seconds since the last sign of life in a lock file; None if the store has no times. OSError."""
    probe = temporary_name(path.parent)
    try:
        if isinstance(path, RemotePath):
            write_atomic(probe, b"")
        else:
            probe.touch()
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    except NotImplementedError:
        return None
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def show_life(path: Path, me: Holder) -> Generator[None]:
    """Write ``me`` into a lock file, and give signs of life there inside of this block.

    At the end the file says so; an object is removed. If another process takes the lock over, this process ends.
    """
    _write(path, me)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, me, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with suppress(OSError):
            if read_holder(path) != me:
                pass  # removed, or another process's by now
            elif isinstance(path, RemotePath):
                path.unlink()
            else:
                _write(path, me._replace(ended=True))


def _write(path: Path, holder: Holder) -> None:
    """Write the line of a lock file, in place: the operating system's lock is on this file."""
    if isinstance(path, RemotePath):
        write_atomic(path, holder.as_line())
    else:
        path.write_text(holder.as_line(), encoding="utf-8")


def _beat(path: Path, me: Holder, ended: threading.Event) -> None:
    pause = _FIRST_BEAT  # two that began at the same moment meet soon
    while not ended.wait(pause):
        pause = BEAT_SECONDS
        with suppress(OSError, UniclError):  # no connection now: the next sign may come through
            now = read_holder(path)
            if now is None:
                continue
            if now != me:
                _give_up(path, now)
            if isinstance(path, RemotePath):
                _write(path, me)
            else:
                os.utime(path)  # the time is that of a server, where there is one


def _give_up(path: Path, holder: Holder) -> None:
    """End this process, which was silent for so long that another one took its lock: two must not write."""
    write_line(f"error: {path.parent}: its lock was taken over by {holder}, since this process gave no sign of life")
    write_line("  leave the folder to that process, or stop it and run the same command again to continue")
    os._exit(2)
