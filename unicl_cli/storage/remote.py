"""Paths on file systems of fsspec (s3://, gs://, hf://): listed, read by range and written, an object at a time."""

import errno
import io
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath
from typing import Any, ClassVar, NoReturn, Self, cast

from unicl_cli.errors import UniclError
from unicl_cli.formats import byte_size

_URL = re.compile(r"[a-z][a-z0-9+.:-]+://.", re.IGNORECASE)
_ONE_SLASH = re.compile(r"[a-z][a-z0-9+.-]+:/(?!/)", re.IGNORECASE)
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
_UNWRITABLE = {
    "memory": "ends with this command",
    "http": "cannot be listed",
    "https": "cannot be listed",
    "hf": "would make a commit of every file",
}
"""Schemes that take no output, and why."""
_LOCAL = ("file", "local")
_UPLOAD = {scheme: {"max_concurrency": 2} for scheme in ("s3", "s3a")}
"""Options of an upload: s3fs would hold ten parts of 50 MB in memory, of a process that has its rows there, too."""


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

    def find_system(self) -> tuple[Any, str]:
        """Return the file system of the path and its name there; UniclError if its package is not installed."""
        return find_system(self)

    def find_info(self) -> dict[str, Any] | None:
        """Return what the file system says of the object or of objects below the path; None if there are none."""
        with refuse_unreachable(self):
            system, name = self.find_system()
            try:  # its own `isfile` takes a server that does not answer for a missing object
                return cast("dict[str, Any]", system.info(name))
            except FileNotFoundError:
                return None

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        found = self.find_info()
        return found is not None and found["type"] == "file"

    def is_dir(self) -> bool:
        """Return whether there is an object below the path."""
        found = self.find_info()
        return found is not None and found["type"] == "directory"

    def is_symlink(self) -> bool:
        """Return False: there are none."""
        return False

    def exists(self) -> bool:
        """Return whether there is an object, or one below it."""
        return self.find_info() is not None

    def iterdir(self) -> Generator[Self, None, None]:
        """Yield the objects and folders directly below the path; none if nothing is there."""
        with refuse_unreachable(self):
            system, name = self.find_system()
            try:
                found = cast("list[str]", system.ls(name, detail=False))
            except FileNotFoundError:
                return
        start = len(name.rstrip("/")) + 1
        yield from (self / item[start:].rstrip("/") for item in found if item[start:].rstrip("/"))

    def glob(self, pattern: str) -> Generator[Self, None, None]:
        """Yield the objects of a pattern without ``**``."""
        with refuse_unreachable(self):
            system, name = self.find_system()
            found = cast("list[str]", system.glob(f"{name.rstrip('/')}/{pattern}"))
        yield from (self / "/".join(item.split("/")[-1 - pattern.count("/") :]) for item in found)

    def rglob(self, pattern: str) -> Generator[Self, None, None]:
        """Yield the objects below the path whose name, without what is before it, is like the pattern."""
        yield from (self / name for name in self.list_sizes() if fnmatchcase(name.rpartition("/")[2], pattern))

    def list_sizes(self) -> dict[str, int]:
        """Return the size of each object below the path, by its name from there; empty if nothing can be listed."""
        system, name = self.find_system()
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
            system, name = self.find_system()
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
            system, name = self.find_system()
            return cast("bytes", system.cat_file(name, start=start, end=end))

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the size and the time of the last change of an object. OSError; NotImplementedError without times."""
        del follow_symlinks
        with explain_remote(self):
            system, name = self.find_system()
            changed = int(system.modified(name).timestamp())
        return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, self.read_size(), changed, changed, changed))

    def read_bytes(self) -> bytes:
        """Return the whole object. OSError."""
        size = self.read_size()
        return self.read_range(0, size) if size else b""

    def read_regular(self, most: int) -> bytes:
        """Return the whole object of at most ``most`` bytes. OSError."""
        if self.read_size() > most:
            raise OSError(errno.EFBIG, f"larger than {byte_size(most)}", str(self))
        with explain_remote(self):
            system, name = self.find_system()
            return cast("bytes", system.cat_file(name))


class RemoteOutput(RemotePath):
    """A remote path that is written to: an object arrives whole, and no listing of before is trusted."""

    __slots__ = ()

    def find_system(self) -> tuple[Any, str]:
        """Return the file system without what it remembers: other processes write here, too."""
        system, name = find_system(self)
        system.invalidate_cache()
        return system, name

    def upload(self, file: Path) -> None:
        """Write a file of this machine to the object, whose old content is there until the new one is whole. OSError"""

        def put() -> None:
            system, name = self.find_system()
            try:
                system.put_file(str(file), name, **_UPLOAD.get(self.parts[0].removesuffix(":"), {}))
            except FileNotFoundError as error:  # no name has to be there but that of the bucket
                raise FileNotFoundError(errno.ENOENT, _one_line(error)) from error

        self._try(put)

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - as pathlib has it
        """Remove the object. OSError."""

        def remove() -> None:
            system, name = self.find_system()
            system.rm_file(name)

        try:
            self._try(remove)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _try(self, request: Callable[[], None]) -> None:
        """Make a request, which is repeated if it fails. OSError."""
        for pause in (*self.PAUSES, None):
            try:
                with explain_remote(self):
                    request()
            except OSError as error:
                if (
                    pause is None
                    or isinstance(error, FileNotFoundError | PermissionError)
                    or error.errno == errno.ENODEV
                ):
                    raise
                time.sleep(pause)
            else:
                return


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
    return RemotePath(_lower_scheme(text))


def output_of(text: str) -> Path:
    """Return a place to write to as a path; a `file:` address is a path of this machine.

    UniclError for an address that takes no output.
    """
    if _ONE_SLASH.match(text):
        scheme, _, rest = text.partition(":/")
        raise UniclError(f"output '{text}': is not an address", f"write {scheme.lower()}://{rest}, or ./{text}")
    if not _URL.match(text):
        return Path(text)
    address = _lower_scheme(text)
    scheme, _, rest = address.partition("://")
    if "::" in scheme:
        raise UniclError(f"output '{text}': is a chain of file systems", "name the last one alone, such as s3://…")
    if scheme in _LOCAL:
        if not rest.startswith("/"):
            raise UniclError(f"output '{text}': names a machine, not a folder", f"write {scheme}:///FOLDER")
        return Path(rest)
    if scheme in _UNWRITABLE:
        then = ", then upload it with `hf upload`" if scheme == "hf" else ", or to an object store such as s3://"
        hint = f"write to a folder{then}"
        raise UniclError(f"output '{text}': {scheme}:// {_UNWRITABLE[scheme]}", hint)
    return RemoteOutput(address)


def _lower_scheme(text: str) -> str:
    scheme, colon, rest = text.partition("://")
    return scheme.lower() + colon + rest


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


def set_environment(variables: Mapping[str, str]) -> None:
    """Set environment variables, those for fsspec also if it has read them already."""
    os.environ.update(variables)
    if any(name.startswith("FSSPEC_") for name in variables):
        from fsspec.config import conf, set_conf_env

        set_conf_env(conf)


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
        raise FileNotFoundError(errno.ENOENT, error.strerror or "no such object", str(path)) from error
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
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:200]
