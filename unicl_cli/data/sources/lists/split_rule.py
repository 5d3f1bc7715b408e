"""The split of each line: a column, one split for the whole list, or files that list the images of each split."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unicl_cli.data.pictures import SUFFIXES
from unicl_cli.data.sources.lists.cells import looks_like_image, strip_number
from unicl_cli.data.sources.splits import split_of
from unicl_cli.data.sources.text_file import read_strict_lines
from unicl_cli.errors import UniclError

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class SplitRule(NamedTuple):
    """How lines get their split: ``fixed`` for all of them, or ``files`` (image -> split); else by a column."""

    fixed: str = ""
    files: Mapping[str, str] | None = None

    def split(self, cell: str, image: str) -> str | None:
        """Return the split of a line; None if the image is in no file."""
        if self.files is None:
            return self.fixed or cell
        return self.files.get(_stem(image))


def read_rule(path: Path, given: str) -> SplitRule | None:
    """Return the rule that ``split=`` spells: a split, or files with a path per line; None if it is neither."""
    if fixed := split_of(given):
        return SplitRule(fixed)
    files = [_find_file(path, name.strip()) for name in given.split(",")]
    if None in files:
        return None
    found: dict[str, str] = {}
    for file in files:
        if file is None:
            continue
        for image, split in _read_splits(file):
            other = found.setdefault(_stem(image), split)
            if other != split:
                raise UniclError(f"{file}: {image} is also in the split '{other}'", "list each image in one split")
    return SplitRule(files=found)


def _find_file(path: Path, name: str) -> Path | None:
    """Return the file beside the list, else in the current directory; None if there is none."""
    return next((file for file in (path.parent / name, Path(name)) if name and file.is_file()), None)


def _read_splits(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each image of a file with the split beside it (`1.jpg train`), or else the one that the file's name says."""
    lines = [(image, _last_cell(line)) for line in read_strict_lines(file) if (image := _first_cell(line))]
    beside = [split_of(cell) for _, cell in lines]
    if None in beside:
        named = _split_of_name(file)
        return ((image, named) for image, _ in lines)
    return ((image, split) for (image, _), split in zip(lines, beside, strict=True) if split)


def _last_cell(line: str) -> str:
    """Return what follows the last separator of a line; empty for a line with one cell."""
    cells = re.split(r"[\s,;|]+", line.strip().rstrip(",;"))
    return cells[-1] if len(cells) > 1 else ""


def _split_of_name(file: Path) -> str:
    if found := [split for word in _WORDS.findall(file.stem) if (split := split_of(word))]:
        return found[0]
    raise UniclError(
        f"{file}: its name does not say which split it lists", f"rename it, for example to test{file.suffix}"
    )


def _first_cell(line: str) -> str:
    """Return a line that is an image, else its first cell: some lists have a class or a number behind the image."""
    cell = "" if line.startswith("#") else line.strip()
    return cell if looks_like_image(cell) or not cell else re.split(r"[\s,;|]", cell, maxsplit=1)[0]


def _stem(image: str) -> str:
    """Return a path without the suffix of an image: lists of splits often leave it out."""
    path = PurePosixPath(strip_number(image).replace("\\", "/"))
    return str(path.with_suffix("") if path.suffix[1:].lower() in SUFFIXES else path)
