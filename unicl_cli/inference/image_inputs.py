"""Files, folders, globs, lists on standard input and URLs as one stream of images, read one by one."""

from __future__ import annotations

import errno
import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from unicl_cli.data.fetch import FetchError
from unicl_cli.data.pictures import SUFFIXES, ImageError, blame_image, read_file
from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import MediaKind
from unicl_cli.inference.media import match_kind

STDIN = "-"
MAX_BYTES = 256_000_000
MAX_ENTRY = 65_536
"""Limit for an entry of a list, in bytes; no path has more than 4,096, and few servers take longer URLs."""
REASONS = {
    "empty": "an empty file",
    "not_image": "not an image",
    "unsupported_format": "an image format that cannot be read (SVG, HEIC)",
    "bomb": "too many pixels",
    "truncated": "an image that is cut off",
    "out_of_memory": "an image that needs more memory than is available",
}
"""Words for `ImageError.reason`; for other reasons the detail says more."""


class ImageInput(NamedTuple):
    """A path or URL as shown to the user, with the bytes if they are read already, or the ``problem`` that stops it."""

    path: str
    problem: str | None = None
    data: bytes | None = None


def find_images(
    inputs: Sequence[str], *, separator: bytes = b"\n", media: Sequence[MediaKind] = ()
) -> Iterator[ImageInput]:
    """Find the images of all inputs: files, URLs, folders, globs, and for ``-`` the list on standard input.

    An input without images becomes a problem. The search is lazy: each input is opened when its images are asked for.
    Files of these kinds of ``media`` count as images.
    """
    for name in inputs:
        if name == STDIN:
            for entry in read_list(partial(os.read, sys.stdin.fileno(), 1 << 16), separator):
                yield from find_input(entry, media)
        elif glob.has_magic(name) and find_problem(name) is not None:
            matches = sorted(match for match in glob.iglob(name, recursive=True) if Path(match).is_file())  # noqa: PTH207 - absolute patterns
            yield from (ImageInput(file) for file in matches or ())
            if not matches:
                yield ImageInput(name, "the pattern matches no file")
        else:
            yield from find_input(name, media)


def find_input(name: str, media: Sequence[MediaKind] = ()) -> Iterator[ImageInput]:
    problem = find_problem(name)
    if problem is not None:
        yield ImageInput(name if len(name) <= MAX_ENTRY else f"{name[:100]}…", problem)
    elif not is_url(name) and Path(name).is_dir():
        yield from find_in_folder(name, media)
    else:
        yield ImageInput(name)


def find_problem(name: str) -> str | None:
    """Return the reason if no file, folder or URL has this name; None if one has it."""
    if len(os.fsencode(name)) > MAX_ENTRY:
        return os.strerror(errno.ENAMETOOLONG)
    try:
        return None if is_url(name) or ("\0" not in name and Path(name).exists()) else "no such file"
    except OSError as error:  # a name that is too long, a folder that may not be searched
        return error.strerror or "cannot be read"


def find_in_folder(folder: str, media: Sequence[MediaKind] = ()) -> Iterator[ImageInput]:
    """Find all images, and files of these ``media``, in a folder and its subfolders by suffix, except hidden ones."""
    unread: list[OSError] = []
    empty = True
    for path, folders, files in os.walk(folder, onerror=unread.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            is_known = Path(name).suffix[1:].lower() in SUFFIXES or match_kind(name, media) is not None
            if is_known and not name.startswith("."):
                empty = False
                yield ImageInput(str(Path(path, name)))
    yield from (ImageInput(str(error.filename), error.strerror or "cannot be read") for error in unread)
    if empty and not unread:
        yield ImageInput(folder, "a folder without images")


def read_list(read: Callable[[], bytes], separator: bytes) -> Iterator[str]:
    """Yield the entries of a list as they come in, without blank ones; ``read`` returns b"" at the end.

    Of an entry above ``MAX_ENTRY`` only so much is kept that it is still too long. Reading sys.stdin itself is not
    safe: a thread that waits for its lock crashes the interpreter at exit.
    """
    rest, first = b"", True
    while True:
        part = read()
        *whole, rest = (rest + part).split(separator) if part else (rest, b"")
        rest = rest[: MAX_ENTRY + 8]  # more than a byte order mark and a line end, which are removed
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


def read_image(
    image: ImageInput, transform: Callable[[bytes], Tensor], fetch: Callable[[str], bytes] | None = None
) -> Tensor | str:
    """Read and transform an image: uint8 (3, H, W), or the problem in words; ``fetch`` None refuses URLs."""
    if image.problem is not None:
        return image.problem
    try:
        with blame_image():
            return transform(read_bytes(image, fetch))
    except ImageError as error:
        return REASONS.get(error.reason, error.detail) or "a damaged image"
    except UniclError as error:  # from the reader of a kind of media
        return error.message
    except FetchError as error:
        return f"{error}; allow it with --allow-private" if error.reason == "private_address" else str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def read_bytes(image: ImageInput, fetch: Callable[[str], bytes] | None) -> bytes:
    if is_url(image.path):
        if fetch is None:
            raise ImageError("url", "a URL: add --allow-url to download it")
        return fetch(image.path)
    if image.data is None:
        return read_file(Path(image.path), MAX_BYTES)
    if len(image.data) > MAX_BYTES:
        raise ImageError("too_large", f"more than {MAX_BYTES:,} bytes")
    return image.data


def open_inputs(
    inputs: Sequence[str],
    *,
    stdin_image: bool = False,
    separator: bytes = b"\n",
    media: Sequence[MediaKind] = (),
) -> tuple[Iterable[ImageInput], int | None]:
    """Return the images, and their number if it is known before a list on standard input ends."""
    if stdin_image:
        return [ImageInput(STDIN, data=sys.stdin.buffer.read(MAX_BYTES + 1))], 1
    found = find_images(inputs, separator=separator, media=media)
    if STDIN in inputs:
        return found, None
    whole = list(found)
    return whole, len(whole)
