"""Scan of a folder: its images, told from side files by their suffix or first bytes before anything is planned."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unicl_cli.data.pictures import SUFFIXES, has_image_signature
from unicl_cli.data.sources.lists.files import SURE_LISTS
from unicl_cli.data.sources.media_files import split_name
from unicl_cli.errors import UniclError, did_you_mean

ARCHIVES = (".tar", ".gz", ".tgz", ".zip")
_TEXTS = frozenset((".txt", ".json", ".xml", ".md", ".yaml", ".yml", ".html", ".log", *SURE_LISTS, *ARCHIVES))
"""Suffixes of files that are not images: they are not opened to find out."""
_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx", "icon\r"))


class FoundFiles(NamedTuple):
    """The visible contents of a folder; ``others`` counts the files that are neither images nor media by suffix."""

    images: list[PurePosixPath]
    media: list[PurePosixPath]
    others: Counter[str]
    lists: list[PurePosixPath]
    folders: frozenset[tuple[str, ...]]
    excluded: int


def scan_folder(root: Path, exclude: Sequence[str], *, media: bool = False) -> FoundFiles:
    """Return what lies under ``root``, relative to it, without what ``exclude`` names. UniclError if it names nothing.

    With ``media``, files named like media (`1.depth.png`) are not images. A pattern without a slash matches any folder
    or file of this name, one with a slash the path from ``root``.
    """
    images: list[PurePosixPath] = []
    beside: list[PurePosixPath] = []
    lists: list[PurePosixPath] = []
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
        else:
            others[path.suffix.lower()] += 1
            lists += [path] if path.suffix.lower() in SURE_LISTS else []
    if unused := [pattern for pattern in exclude if pattern not in used]:
        raise UniclError(
            f"{root}: exclude: no folder or file '{unused[0]}'{did_you_mean(unused[0], names)}",
            "name a folder, a path from this folder, or a pattern with *",
        )
    return FoundFiles(images, beside, others, lists, frozenset(folders), excluded)


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
    """Yield the visible entries under ``root`` as (path with ``/``, is it a folder); links never lead into a loop."""
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset((os.path.realpath(root),)))]
    while pending:
        here, above = pending.pop()
        with os.scandir(root / here) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                    continue
                relative = f"{here}/{entry.name}" if here else entry.name
                if not entry.is_dir():
                    yield relative, False
                elif (real := os.path.realpath(entry.path)) not in above:
                    yield relative, True
                    pending.append((relative, above | {real}))
