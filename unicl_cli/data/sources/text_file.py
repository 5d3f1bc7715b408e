"""Text files of others, decoded strictly: a byte that does not fit is an error with its line."""

import codecs
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from unicl_cli.errors import UniclError

UTF8 = "utf-8"


def read_lines(path: Path, encoding: str, src: str, newline: str = "\n") -> Iterator[str]:
    """Yield the lines of a text file with their ends. UniclError for a byte that the encoding does not have.

    ``src`` is the source as the user wrote it, for the hint; ``newline`` is that of ``open``.
    """
    check_encoding(encoding, src)
    try:
        with path.open(encoding=encoding, errors="strict", newline=newline) as file:
            yield file.readline().removeprefix("\ufeff")  # a byte order mark
            yield from file
    except UnicodeError as error:
        raise _locate_fault(path, encoding, src) from error


def read_text(path: Path, encoding: str, src: str) -> str:
    """Return the text of a file; see ``read_lines``. OSError if it cannot be opened."""
    return "".join(read_lines(path, encoding, src))


def check_encoding(encoding: str, src: str) -> None:
    """Raise UniclError unless Python has a text encoding of this name."""
    try:
        with suppress(UnicodeError):
            b" ".decode(encoding)
    except (LookupError, ValueError) as error:  # unknown, not of text (base64), or with a NUL in its name
        raise UniclError(f"{src}: unknown encoding '{encoding}'", "use one such as utf-8, cp1252 or gb18030") from error


def _locate_fault(path: Path, encoding: str, src: str) -> UniclError:
    """Return the error for the first byte that cannot be decoded, counted from 1 in its line."""
    data = path.read_bytes()
    place = "its end is cut off"
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line, start = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        place = f"line {line}, byte {error.start - start + 1} (0x{data[error.start]:02x})"
    except UnicodeError:
        place = "no byte order mark"  # UTF-16 and UTF-32 without their order
    name = "UTF-8" if codecs.lookup(encoding).name == UTF8 else encoding
    return UniclError(
        f"{path}: {place}: not {name}",
        f"save it as UTF-8, or name its encoding: '{src}?encoding=NAME', where NAME is cp1252 in western Europe, "
        "gb18030 in China, shift_jis in Japan",
    )
