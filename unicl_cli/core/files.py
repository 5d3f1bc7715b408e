"""Files that are whole or absent, whatever kills the process."""

import errno
import os
import stat
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from unicl_cli.formats import byte_size


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    OSError for a pipe or device (which may never end), a folder, and a larger file. It is decided on the open file, so
    that another process cannot exchange it in between.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
        if size > most or len(data) > most:
            raise OSError(errno.EFBIG, f"larger than {byte_size(most)}", str(path))
    return data


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for a pipe or device (which may never end) and for a folder."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")  # noqa: PTH123 - a handle
    os.close(handle)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


@contextmanager
def make_folder(path: Path) -> Generator[None]:
    """Make the folder ``path``; folders created here are removed at the end if they are still empty."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


@contextmanager
def temporary_beside(path: Path) -> Generator[Path]:
    """Yield a temporary name in the folder of ``path``, which is made if missing; the file is removed at the end.

    An error of the operating system names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield part
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write that fails, as on a full disk, names no file
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def replace_durably(part: Path, path: Path) -> None:
    """Rename the finished file ``part`` to ``path``; both file and name are on disk when this returns."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` (text as UTF-8): a reader sees the old content or the new one, never a part."""
    with temporary_beside(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        replace_durably(part, path)
