"""Files that are whole or absent, whatever kills the process."""

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes a rename inside ``folder`` last; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def make_folder(path: Path) -> Generator[None]:
    """Makes the folder ``path``; what was made of it and its parents goes again at the end if it is still empty."""
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
    """A temporary name in the folder of ``path``, which is made if it is missing; gone at the end.

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
    """Gives the finished file ``part`` its name, on disk when it returns."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replaces ``path`` by ``data`` (text as UTF-8): a reader sees the old content or the new, never a part."""
    with temporary_beside(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        replace_durably(part, path)
