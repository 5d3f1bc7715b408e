"""Members of a tar from an untrusted source: bounded in memory and time, one kind of error."""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from unicl_cli.data.text import replace_surrogates

HEADER_BYTES = 1 << 20
"""Maximum number of bytes of a long name or of extended attributes."""
T = TypeVar("T")


class _Window(io.RawIOBase):
    """A part of a file, with the methods of a file that `tarfile` needs to read headers."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        if not 0 <= self.at < self.size:
            return b""
        self.file.seek(self.start + self.at)
        content = self.file.read(min(size, self.size - self.at))
        self.at += len(content)
        return content


def iter_members(file: IO[bytes], start: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of the tar in the ``size`` bytes of a file from ``start`` on, which places count from.

    Raise tarfile.ReadError if it is not a tar, is cut off, or has a header that is damaged or contradicts another; and
    OSError of the file. A tar may end without its closing blocks.
    """
    window = _Window(file, start, size)
    tar: Any = _one_error(lambda: tarfile.TarFile(fileobj=window))  # whose list of members the type stubs lack
    end = 0
    member: tarfile.TarInfo | None
    while (member := _one_error(tar.next)) is not None:
        stored = member.size if member.isreg() and not member.issparse() else 0
        if member.size < 0 or member.offset < end or member.offset_data + stored > size:
            raise tarfile.ReadError(f"the header at byte {start + member.offset:,} claims {member.size:,} bytes")
        end = member.offset_data + stored
        tar.members.clear()  # or `tarfile` would keep all of them
        member.name = replace_surrogates(member.name)  # which may be in another encoding
        yield member
    window.seek(tar.offset)
    if window.read(tarfile.BLOCKSIZE).strip(b"\0"):  # `tarfile` takes a damaged header for the end
        raise tarfile.ReadError(f"the header at byte {start + tar.offset:,} is damaged")


def _one_error(step: Callable[[], T]) -> T:
    try:
        return step()
    except (tarfile.TarError, OSError):
        raise
    except Exception as error:  # odd headers raise anything: OverflowError, ValueError, RecursionError, ...
        raise tarfile.ReadError(f"odd header: {type(error).__name__}: {error}") from error
