"""Paths on file systems of fsspec (s3://, gs://, hf://): listed and read by range, with nothing kept on the disk."""

import errno
import io
import os
import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import Any, ClassVar, NoReturn, Self, cast

from unicl_cli.errors import UniclError
from unicl_cli.formats import byte_size

_URL = re.compile(r"[a-z][a-z0-9+.:-]+://.")
_INSTALL = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
"""Packages of file systems that fsspec has not itself, by scheme."""


class RemotePath(PosixPath):
    """A path that prints as its URL. Names below it are made with ``/`` as of any path."""

    __slots__ = ()
    PAUSES: ClassVar[tuple[float, ...]] = (0.5, 2.0)
    """Seconds before each further try of a request that failed."""

    def __str__(self) -> str:
        scheme, *names = self.parts
        root = "/" if scheme.endswith(("file:", "local:")) else ""
        return f"{scheme}//{root}{'/'.join(names)}"

    def absolute(self) -> Self:
        """Return the path itself, which no folder of this machine is above."""
        return self

    def resolve(self, strict: bool = False) -> Self:  # noqa: FBT001, FBT002 - as pathlib has it
        """Return the path itself."""
        del strict
        return self

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        with refuse_unreachable(self):
            system, name = find_system(self)
            return bool(system.isfile(name))

    def exists(self) -> bool:
        """Return whether there is an object, or one below it."""
        with refuse_unreachable(self):
            system, name = find_system(self)
            return bool(system.exists(name))

    def glob(self, pattern: str) -> Generator[Self, None, None]:
        """Yield the objects of a pattern without ``**``."""
        with refuse_unreachable(self):
            system, name = find_system(self)
            found = cast("list[str]", system.glob(f"{name.rstrip('/')}/{pattern}"))
        yield from (self / "/".join(item.split("/")[-1 - pattern.count("/") :]) for item in found)

    def list_sizes(self) -> dict[str, int]:
        """Return the size of each object below the path, by its name from there; empty if nothing can be listed."""
        system, name = find_system(self)
        with refuse_unreachable(self):
            try:
                found = cast("dict[str, dict[str, Any]]", system.find(name, detail=True))
            except NotImplementedError:  # a web server lists nothing
                return {}
        start = len(name.rstrip("/")) + 1
        return {item[start:]: int(about["size"] or 0) for item, about in found.items()}

    def read_size(self) -> int:
        """Return the size of the object. OSError."""
        with explain_remote(self):
            system, name = find_system(self)
            return int(system.info(name)["size"] or 0)

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to before ``end``, by one request that is repeated if it fails. OSError."""
        for pause in self.PAUSES:
            try:
                return self._read_once(start, end)
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                time.sleep(pause)
        return self._read_once(start, end)

    def _read_once(self, start: int, end: int) -> bytes:
        with explain_remote(self):
            system, name = find_system(self)
            return cast("bytes", system.cat_file(name, start=start, end=end))

    def read_regular(self, most: int) -> bytes:
        """Return the whole object of at most ``most`` bytes. OSError."""
        if self.read_size() > most:
            raise OSError(errno.EFBIG, f"larger than {byte_size(most)}", str(self))
        with explain_remote(self):
            system, name = find_system(self)
            return cast("bytes", system.cat_file(name))


class RangeFile(io.RawIOBase):
    """An object as a file whose every read is one request for a range."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self.path, self.size, self.at = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1, /) -> bytes:
        end = self.size if size < 0 else min(self.size, self.at + size)
        if end <= self.at:
            return b""
        data = self.path.read_range(self.at, end)
        if len(data) != end - self.at:
            raise OSError(errno.EIO, f"{len(data):,} bytes came instead of {end - self.at:,}", str(self.path))
        self.at = end
        return data


def place_of(text: str | Path) -> Path:
    """Return a place on the command line or in a recipe as a path: of this machine, or of another file system."""
    if isinstance(text, Path) or not _URL.match(text):
        return Path(text) if isinstance(text, str) else text
    return RemotePath(text)


def find_system(path: RemotePath) -> tuple[Any, str]:
    """Return the file system of a path and its name there; UniclError if its package is not installed."""
    from fsspec.core import url_to_fs

    text = str(path)
    try:
        return url_to_fs(text)
    except ImportError as error:
        _refuse(text, " ".join(str(error).split()), error)
    except ValueError as error:
        _refuse(text, str(error), error)


def _refuse(text: str, problem: str, error: Exception) -> NoReturn:
    scheme = text.partition("://")[0].rpartition(":")[2]
    package = _INSTALL.get(scheme)
    hint = f"pip install {package}" if package else "check the scheme of the address: s3, gs, hf, file"
    raise UniclError(f"{text}: {problem}", hint) from error


@contextmanager
def explain_remote(path: RemotePath) -> Generator[None]:
    """Turn what a file system raises into an OSError with one line: each has its own exceptions."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or _one_line(error), str(path)) from error
    except (UniclError, NotImplementedError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, _one_line(error), str(path)) from error


@contextmanager
def refuse_unreachable(path: RemotePath) -> Generator[None]:
    """Turn what a file system raises into a UniclError, where a path is looked up."""
    try:
        with explain_remote(path):
            yield
    except OSError as error:
        hint = "check the address, the connection and the rights"
        raise UniclError(f"{path}: cannot be reached: {error.strerror}", hint) from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
