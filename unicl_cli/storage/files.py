"""Atomic writes: a file is whole or absent, whatever kills the process; temporary names that only unicl writes."""

import errno
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from unicl_cli.errors import UniclError
from unicl_cli.formats import byte_size
from unicl_cli.storage.remote import RangeFile, RemoteOutput, RemotePath

_DOWNLOAD = 32_000_000
"""Bytes of a remote object that are fetched by one request."""
_TEMPORARY = re.compile(r"\.unicl-[0-9a-f]{32}\.tmp")
"""The one form of a temporary name: no program but unicl gives it to a file or folder."""

READER_SECONDS = 5.0
"""The longest wait for a program that reads the pipe which an output goes to."""


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

    OSError as `open_regular`, and for a larger file.
    """
    if isinstance(path, RemotePath):
        return path.read_regular(most)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= most else b""  # to ask for ``most`` would allocate that much
        if len(data) > size:  # it has grown, or is a file of the kernel without a size
            data += file.read(most + 1 - len(data))
        if size > most or len(data) > most:
            raise OSError(errno.EFBIG, f"larger than {byte_size(most)}", str(path))
    return data


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    OSError for a pipe or device (which may never end) and a folder. It is decided on the open file, so that another
    process cannot exchange it in between.
    """
    if isinstance(path, RemotePath):
        return io.BufferedReader(RangeFile(path, path.read_size()))
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "rb")  # noqa: PTH123 - a handle, which the caller closes


@contextmanager
def open_copy(path: Path) -> Generator[Path]:
    """Yield a path of this machine with the content of ``path``: itself, or a copy of an object that ends with this.

    What maps the file into memory keeps it for longer. OSError.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with _nameless_file() as copy:
        size = path.read_size()
        with copy.open("wb") as file:
            for start in range(0, size, _DOWNLOAD):
                file.write(path.read_range(start, min(size, start + _DOWNLOAD)))
        yield copy


@contextmanager
def _nameless_file() -> Generator[Path]:
    """Yield the path of a file in TMPDIR that has no name there: nothing is left of it, however this process ends."""
    with tempfile.TemporaryFile(prefix="unicl-") as file:
        yield Path(f"/dev/fd/{file.fileno()}")


def list_names(folder: Path) -> set[str]:
    """Return the names in a folder; none if it is missing."""
    with suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir()}
    return set()


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


def temporary_name(folder: Path) -> Path:
    """Return a new temporary name in ``folder``, for a file or a folder that `remove_leftovers` may remove."""
    return folder / f".unicl-{uuid.uuid4().hex}.tmp"


def is_leftover(path: Path) -> bool:
    """Return whether ``path`` is a temporary file or folder of unicl: its whole name says so, and it is not a link."""
    if not _TEMPORARY.fullmatch(path.name):
        return False
    if isinstance(path, RemotePath):
        return True
    mode = path.lstat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left directly in ``folder``.

    Call it only for a folder of unicl's own that is locked: other processes may still be writing elsewhere.
    """
    with suppress(OSError, UniclError):  # a folder that is missing or cannot be read holds nothing to remove
        for path in folder.iterdir():
            with suppress(OSError):  # what cannot be removed does no harm
                if is_leftover(path):
                    discard(path)


def discard(path: Path) -> None:
    """Remove a file, or a folder with all its content; a folder disappears at once, never in part.

    OSError if it cannot be removed.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    gone = path if _TEMPORARY.fullmatch(path.name) else path.rename(temporary_name(path.parent))
    shutil.rmtree(gone)


@contextmanager
def temporary_beside(path: Path) -> Generator[Path]:
    """Yield a temporary name in the folder of ``path``, which is made if missing; the file is removed at the end.

    For a remote path it is a file of this machine, without a name in any folder. An error of the operating system
    names ``path``.
    """
    if isinstance(path, RemoteOutput):
        with _nameless_file() as part:
            yield part
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_name(path.parent)
    try:
        yield part
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):
            error.filename = str(path)  # a write that fails, as on a full disk, names no file
        raise
    finally:
        part.unlink(missing_ok=True)


def replace_durably(part: Path, path: Path) -> None:
    """Rename the finished file ``part`` to ``path``; both file and name are on disk when this returns.

    To a remote path it is uploaded: such a store has no rename, and shows an object once it is whole.
    """
    if isinstance(path, RemoteOutput):
        path.upload(part)
        return
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` (text as UTF-8): a reader sees the old content or the new one, never a part."""
    with temporary_beside(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        replace_durably(part, path)


# -- outputs whose place the user has chosen --------------------------------------------------------------------------


def find_output(path: Path) -> os.stat_result | None:
    """Return the state of the file, device or pipe that an output to ``path`` goes to; None for a new file.

    OSError if it can take no output: a folder, a disk, a socket, a link that leads to itself, a protected file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not (stat.S_ISREG(found.st_mode) or _is_stream(found)):
        raise OSError(errno.EINVAL, "neither a file nor a stream", str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return found


@contextmanager
def write_output(path: Path) -> Generator[Path]:
    """Yield a temporary file to fill for ``path``, which the user has named; its content arrives whole at the end.

    A regular file is replaced but keeps its mode, and a link to it stays. A device or a pipe is written through, as is
    the file that is this process's standard output or error. OSError as `find_output`, and if a write fails.
    """
    found = find_output(path)
    if is_written_through(path):
        with tempfile.TemporaryDirectory(prefix="unicl-") as folder:
            part = Path(folder) / "output"
            yield part
            with part.open("rb") as source, _open_stream(path) as stream:
                shutil.copyfileobj(source, stream)
        return
    target = Path(os.path.realpath(path))
    with temporary_beside(target) as part:
        yield part
        if found is not None:
            part.chmod(stat.S_IMODE(found.st_mode))
        replace_durably(part, target)


def is_written_through(path: Path) -> bool:
    """Return whether an output to ``path`` is written as it comes: to a device, a pipe, standard output or error."""
    found = find_output(path)
    return found is not None and (_is_stream(found) or _own_stream(found) is not None)


def write_output_data(path: Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to an output, as `write_output`."""
    with write_output(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def _is_stream(found: os.stat_result) -> bool:
    """Return whether a file takes bytes as they come: a terminal, /dev/null, a pipe."""
    return stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode)


def _own_stream(found: os.stat_result) -> int | None:
    """Return 1 or 2 if a file is this process's standard output or error, else None."""
    for number in (1, 2):
        with suppress(OSError):  # closed
            if os.path.samestat(os.fstat(number), found):
                return number
    return None


def _open_stream(path: Path) -> BinaryIO:
    """Open a stream for writing; standard output and error as they are open already, at their place."""
    number = _own_stream(path.stat())
    if number is None:
        return open(_wait_for_reader(path), "wb")
    (sys.stdout if number == 1 else sys.stderr).flush()  # what was printed before comes first
    return os.fdopen(os.dup(number), "wb")


def _wait_for_reader(path: Path) -> int:
    """Return a handle that writes to a device or pipe; OSError if nobody reads the pipe for some seconds."""
    end = time.monotonic() + READER_SECONDS
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                raise OSError(errno.ENXIO, "no program reads this pipe", str(path)) from error
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)  # a reader may be slower
            return handle
