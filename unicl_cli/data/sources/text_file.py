"""Text files of others, decoded strictly, in lines of bounded length."""

import codecs
import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from unicl_cli.errors import UniclError
from unicl_cli.storage.files import open_regular, read_regular

UTF8 = "utf-8"
MAX_LINE = 16_000_000
"""Maximum number of characters of a line; of a longer one, only the length is kept."""
csv.field_size_limit(MAX_LINE)  # of the whole process; only a quote that is never closed makes a longer cell
_AT_MOST = "characters; at most"
_CHUNK = 1 << 20


class LongLine(str):
    """The stand-in for a line of more than ``MAX_LINE`` characters: blank, with a quote if the line had an odd one."""

    __slots__ = ("length",)
    length: int

    @property
    def fault(self) -> str:
        return describe_length("the line", self.length, MAX_LINE)


def describe_length(what: str, length: int, most: int) -> str:
    """Return the fault of a text that is too long."""
    return f"{what} has {length:,} {_AT_MOST} {most:,}"


def is_length(fault: str) -> bool:
    """Return whether a fault is that of `describe_length`: it says nothing about the form of the list."""
    return _AT_MOST in fault


def read_lines(path: Path, encoding: str, src: str, newline: str = "\n") -> Iterator[str]:
    """Yield the lines of a text file with their ends, a `LongLine` for one that is too long.

    UniclError for a byte that the encoding does not have; OSError if the file cannot be opened, or is a pipe or device.
    ``src`` is the source as the user wrote it, for the hint, empty if it takes no encoding. ``newline`` is that of
    ``open``.
    """
    check_encoding(encoding, src)
    try:
        with io.TextIOWrapper(open_regular(path), encoding, "strict", newline) as file:
            line, most = file.readline(MAX_LINE + 1).removeprefix("\ufeff"), MAX_LINE  # a byte order mark
            while line:
                yield line if len(line) <= most else _skip_line(file, line)
                line = file.readline(most + 1)
    except UnicodeError as error:
        raise _locate_fault(path, encoding, src) from error


def read_strict_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file that is not a source and takes no options.

    UniclError as `read_lines`, and for a line that is too long or a file that cannot be opened.
    """
    try:
        for number, line in enumerate(read_lines(path, UTF8, ""), 1):
            if isinstance(line, LongLine):
                raise UniclError(f"{path}: line {number}: {line.fault}", "check that this is the right file")
            yield line
    except OSError as error:
        raise UniclError(f"{path}: cannot be read: {error.strerror}", "check the file and its permissions") from error


def read_text(path: Path, encoding: str, src: str, most: int) -> str:
    """Return the text of a file of at most ``most`` bytes; errors as `read_lines`, and OSError if it is larger."""
    check_encoding(encoding, src)
    try:
        return read_regular(path, most).decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise _locate_fault(path, encoding, src) from error


def check_encoding(encoding: str, src: str) -> None:
    """Raise UniclError unless Python has a text encoding of this name."""
    try:
        with suppress(UnicodeError):
            b" ".decode(encoding)
    except (LookupError, ValueError) as error:  # unknown, not of text (base64), or with a NUL in its name
        raise UniclError(f"{src}: unknown encoding '{encoding}'", "use one such as utf-8, cp1252 or gb18030") from error


def _skip_line(file: TextIO, line: str) -> str:
    """Return the line whose first characters were read; if there are more, its stand-in."""
    if line[-1] in "\r\n":
        return line
    length, quotes = 0, 0
    while line:
        length, quotes = length + len(line), quotes + line.count('"')
        line = "" if line[-1] in "\r\n" else file.readline(_CHUNK)
    found = LongLine('"\n' if quotes % 2 else "\n")
    found.length = length
    return found


def _locate_fault(path: Path, encoding: str, src: str) -> UniclError:
    """Return the error for the first byte that cannot be decoded, counted from 1 in its line."""
    name = "UTF-8" if codecs.lookup(encoding).name == UTF8 else encoding
    hint = "save it as UTF-8"
    if src:
        hint += (
            f", or name its encoding: '{src}?encoding=NAME', where NAME is cp1252 in western Europe, gb18030 in China, "
            "shift_jis in Japan"
        )
    return UniclError(f"{path}: {_find_fault(path, encoding)}: not {name}", hint)


def _find_fault(path: Path, encoding: str) -> str:
    decoder = codecs.getincrementaldecoder(encoding)()
    lines, begin, done = 1, 0, 0  # lines begun, the place where the last one begins, and the bytes that are decoded
    with open_regular(path) as file:
        chunk = b"-"
        while chunk:
            chunk = file.read(_CHUNK)
            try:
                decoder.decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                before = error.object[: error.start]  # with the bytes that the last chunk left over
                place = done + len(chunk) - len(error.object) + error.start
                lines += before.count(b"\n")
                begin = place - error.start + before.rfind(b"\n") + 1 if b"\n" in before else begin
                return f"line {lines}, byte {place - begin + 1} (0x{error.object[error.start]:02x})"
            except UnicodeError:
                return "no byte order mark"  # UTF-16 and UTF-32 without their order
            lines += chunk.count(b"\n")
            begin = done + chunk.rfind(b"\n") + 1 if b"\n" in chunk else begin
            done += len(chunk)
    return "its end is cut off"
