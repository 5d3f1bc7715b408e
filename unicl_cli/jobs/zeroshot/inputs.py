"""Files, folders, globs, lists on standard input and URLs as one stream of images, read one by one."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from unicl_cli.data.fetch import FetchError
from unicl_cli.data.pictures import SUFFIXES, ImageError

LISTED = "-"
MAX_BYTES = 256_000_000
REASONS = {
    "empty": "an empty file",
    "not_image": "not an image",
    "unsupported_format": "an image format that cannot be read (SVG, HEIC)",
    "bomb": "too many pixels",
    "truncated": "an image that is cut off",
}
"""What `ImageError.reason` means to a user; of others its detail says more."""


class Picture(NamedTuple):
    """A path or URL as it is shown; ``problem`` says why there is nothing to read, ``data`` is what is read already."""

    path: str
    problem: str | None = None
    data: bytes | None = None


def pictures_of(inputs: Sequence[str], *, separator: bytes = b"\n") -> Iterator[Picture]:
    """Files and URLs as they are, folders with all images below them, globs, and for ``-`` what standard input lists.

    What holds nothing stays as a problem. Everything is found when it is asked for.
    """
    for name in inputs:
        if name == LISTED:
            for entry in listed(partial(os.read, sys.stdin.fileno(), 1 << 16), separator):
                yield from one_input(entry)
        elif glob.has_magic(name) and not is_url(name) and not Path(name).exists():
            matches = sorted(match for match in glob.iglob(name, recursive=True) if Path(match).is_file())  # noqa: PTH207 - absolute patterns
            yield from (Picture(file) for file in matches or ())
            if not matches:
                yield Picture(name, "the pattern matches no file")
        else:
            yield from one_input(name)


def one_input(name: str) -> Iterator[Picture]:
    if is_url(name):
        yield Picture(name)
    elif Path(name).is_dir():
        yield from below(name)
    elif "\0" in name or not Path(name).exists():
        yield Picture(name, "no such file")
    else:
        yield Picture(name)


def below(folder: str) -> Iterator[Picture]:
    """All images in a folder and the folders in it, by their suffix; hidden ones are passed over."""
    unread: list[OSError] = []
    empty = True
    for path, folders, files in os.walk(folder, onerror=unread.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix[1:].lower() in SUFFIXES:
                empty = False
                yield Picture(str(Path(path, name)))
    yield from (Picture(str(error.filename), error.strerror or "cannot be read") for error in unread)
    if empty and not unread:
        yield Picture(folder, "a folder without images")


def listed(read: Callable[[], bytes], separator: bytes) -> Iterator[str]:
    """The entries of a list as they come in; blank ones are passed over. ``read`` gives b"" at the end.

    Not sys.stdin: a thread that waits in its lock when the interpreter ends brings it down.
    """
    rest, first = b"", True
    while True:
        part = read()
        *whole, rest = (rest + part).split(separator) if part else (rest, b"")
        for entry in whole:
            name = entry.removeprefix(b"\xef\xbb\xbf") if first else entry
            first = False
            if separator == b"\n":
                name = name.removesuffix(b"\r")
            if name.strip():
                yield os.fsdecode(name)
        if not part:
            return


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def read(
    picture: Picture, transform: Callable[[bytes], Tensor], fetch: Callable[[str], bytes] | None = None
) -> Tensor | str:
    """uint8 (3, H, W), or why there is none; without ``fetch`` no URL is."""
    if picture.problem is not None:
        return picture.problem
    try:
        return transform(content(picture, fetch))
    except ImageError as error:
        return REASONS.get(error.reason, error.detail)
    except FetchError as error:
        return f"{error}; allow it with --allow-private" if error.reason == "private_address" else str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def content(picture: Picture, fetch: Callable[[str], bytes] | None) -> bytes:
    if is_url(picture.path):
        if fetch is None:
            raise ImageError("url", "a URL: add --allow-url to download it")
        return fetch(picture.path)
    if picture.data is None:
        with Path(picture.path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    else:
        data = picture.data
    if len(data) > MAX_BYTES:
        raise ImageError("too_large", f"more than {MAX_BYTES:,} bytes")
    return data


def inputs_of(
    inputs: Sequence[str], *, stdin_image: bool = False, separator: bytes = b"\n"
) -> tuple[Iterable[Picture], int | None]:
    """The images, and how many they are where that is known before a list on standard input ends."""
    if stdin_image:
        return [Picture(LISTED, data=sys.stdin.buffer.read(MAX_BYTES + 1))], 1
    found = pictures_of(inputs, separator=separator)
    if LISTED in inputs:
        return found, None
    whole = list(found)
    return whole, len(whole)
