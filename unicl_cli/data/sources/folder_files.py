"""Scan of a folder: its images are recognised by their suffix or first bytes before anything is planned."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unicl_cli.data.pictures import SUFFIXES, has_image_signature
from unicl_cli.data.sources.lists.files import LISTS, SURE_LISTS
from unicl_cli.data.sources.media_files import split_name
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.storage.spool import Spool

ARCHIVES = (".tar", ".gz", ".tgz", ".zip")
_TEXTS = frozenset((".txt", ".json", ".xml", ".md", ".yaml", ".yml", ".html", ".log", *SURE_LISTS, *ARCHIVES))
"""Suffixes of files that are not images: they are not opened to find out."""
MAX_TEXTS = 100
"""The most files of a suffix that are kept by name."""
_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx", "icon\r"))


class FoundFiles(NamedTuple):
    """The visible contents of a folder: ``images`` in the order of their paths, and the folders ``holding`` some.

    ``others`` counts the files that are neither images nor media by suffix. ``lists`` are surely lists;
    ``texts`` may be, the first MAX_TEXTS of each suffix.
    """

    images: Sequence[PurePosixPath]
    holding: frozenset[tuple[str, ...]]
    media: list[PurePosixPath]
    others: Counter[str]
    lists: list[PurePosixPath]
    texts: list[PurePosixPath]
    folders: frozenset[tuple[str, ...]]
    excluded: int


def spool_paths() -> Spool[PurePosixPath]:
    """Return an empty list of paths in a temporary file."""
    return Spool[PurePosixPath](str, PurePosixPath)


def scan_folder(root: Path, exclude: Sequence[str], *, media: bool = False) -> FoundFiles:
    """Return what lies under ``root``, relative to it, without what ``exclude`` names. UniclError if it names nothing.

    With ``media``, files named like media (`1.depth.png`) are not images. A pattern without a slash matches any folder
    or file of this name, one with a slash the path from ``root``.
    """
    images = spool_paths()
    holding: set[tuple[str, ...]] = set()
    beside: list[PurePosixPath] = []
    lists: list[PurePosixPath] = []
    texts: list[PurePosixPath] = []
    others: Counter[str] = Counter()
    folders: set[tuple[str, ...]] = set()
    names: set[str] = set()
    used: set[str] = set()
    excluded = 0
    for name, is_folder in _iter_entries(root):
        path = PurePosixPath(name)
        matched = {pattern for pattern in exclude if _matches(path, pattern)}
        used |= matched
        if is_folder:
            names |= {path.name, name}
            folders |= set() if matched else {path.parts}
        elif matched:
            excluded += path.suffix[1:].lower() in SUFFIXES
        elif media and split_name(name):
            beside.append(path)
        elif _is_image(root, path):
            images.append(path)
            holding.add(path.parts[:-1])
        else:
            suffix = path.suffix.lower()
            others[suffix] += 1
            lists += [path] if suffix in SURE_LISTS else []
            texts += [path] if suffix in LISTS and suffix not in SURE_LISTS and others[suffix] <= MAX_TEXTS else []
    if unused := [pattern for pattern in exclude if pattern not in used]:
        raise UniclError(
            f"{root}: exclude: no folder or file '{unused[0]}'{did_you_mean(unused[0], names)}",
            "name a folder, a path from this folder, or a pattern with *",
        )
    return FoundFiles(images, frozenset(holding), beside, others, lists, texts, frozenset(folders), excluded)


def _matches(path: PurePosixPath, pattern: str) -> bool:
    if "/" not in pattern:
        return any(fnmatchcase(part, pattern) for part in path.parts)
    return any(fnmatchcase(str(part), pattern) for part in (path, *path.parents))


def _is_image(root: Path, path: PurePosixPath) -> bool:
    """Return whether a file is an image by its suffix, or else by its first bytes."""
    suffix = path.suffix.lower()
    if suffix[1:] in SUFFIXES or suffix in _TEXTS:
        return suffix[1:] in SUFFIXES
    try:
        file = root / path
        if not file.is_file():
            return False  # a pipe would never end
        with file.open("rb") as content:
            return has_image_signature(content.read(32))
    except OSError:
        return False


def _iter_entries(root: Path) -> Iterator[tuple[str, bool]]:
    """Yield the visible entries under ``root`` as (path with ``/``, is it a folder); links never lead into a loop.

    Files come in the order of their paths.
    """
    pending = [("", frozenset((os.path.realpath(root),)), iter(_list_names(root)))]
    while pending:
        here, above, names = pending[-1]
        name = next(names, None)
        if name is None:
            pending.pop()
        elif not name.endswith("/"):
            yield here + name, False
        elif (real := os.path.realpath(root / here / name)) not in above:
            yield here + name[:-1], True
            pending.append((here + name, above | {real}, iter(_list_names(root / here / name))))


def _list_names(folder: Path) -> list[str]:
    """Return the visible entries of a folder, those that are folders with a slash, in the order of the paths in it."""
    with os.scandir(folder) as entries:
        seen = (entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _LITTER)
        return sorted(f"{entry.name}/" if _is_folder(entry) else entry.name for entry in seen)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link to itself: an image that cannot be read, which is counted with its reason
