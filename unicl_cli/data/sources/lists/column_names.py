"""Usual names of columns, and the header of a text list."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from unicl_cli.data.sources.lists.cells import looks_like_image

NAMES = {
    "image": "image file filename filepath path img imagepath imgpath imagefile imagename imgname filenames filepaths "
    "images imagefilename photo picture pic imageid imgid url imageurl imgurl",
    "caption": "caption captions text texts title sentence sentences description descriptions alt alttext comment "
    "comments captiontext imagecaption conversations messages",
    "label": "label labels class category classname labelname target species breed",
    "split": "split subset fold partition",
    "key": "key id",
}
"""Column names that need no option; the first match wins. Case, blanks, ``_`` and ``-`` do not matter."""
WEAK_SPLITS = frozenset(("dataset", "set", "usage", "phase"))
"""Names that mean the split only if all their cells do."""
_SHARE = 0.9
"""Share of cells that look like images in a column of images."""


def squeeze(name: str) -> str:
    """Return a column's name as NAMES has it: ``Image Name`` and ``image_name`` are ``imagename``."""
    return re.sub(r"[\s_.-]+", "", name).lower()


def usual_columns(role: str, columns: Iterable[str]) -> list[str]:
    """Return the columns with a usual name for the role, the most usual first."""
    words = NAMES[role].split()
    return sorted((c for c in columns if squeeze(c) in words), key=lambda c: words.index(squeeze(c)))


def numbered_columns(role: str, columns: Iterable[str]) -> list[str]:
    """Return the columns with a usual name and a number, such as ``caption_0``; those of the most usual name."""
    words = NAMES[role].split()
    found = {c: squeeze(c).rstrip("0123456789") for c in columns if squeeze(c)[-1:].isdecimal()}
    first = min((words.index(word) for word in found.values() if word in words), default=None)
    return [] if first is None else [c for c, word in found.items() if word == words[first]]


def is_usual(cell: str) -> bool:
    """Return whether a cell is a usual name of a column."""
    return any(squeeze(cell) in words.split() for words in NAMES.values())


def is_header(first: Sequence[str], others: Sequence[Sequence[str]], named: Sequence[str]) -> bool:
    """Return whether a list's first line names its columns.

    It does if it has a name that the user gave, or no image but a usual name that its column never repeats, or if
    images begin right below it.
    """
    cells = [cell.strip() for cell in first]
    if any(fnmatchcase(cell, name) or name.startswith(f"{cell}.") for cell in cells if cell for name in named):
        return True
    if any(map(looks_like_image, cells)):
        return False
    rows = [row for row in others if len(row) == len(first)]
    below = [{row[at].strip() for row in rows} for at in range(len(cells))]
    usual = any(is_usual(cell) and cell not in under for cell, under in zip(cells, below, strict=True))
    return usual or len(numbered_columns("caption", cells)) > 1 or bool(image_columns(rows))


def image_columns(rows: Sequence[Sequence[object]]) -> list[int]:
    """Return the numbers of the columns whose cells look like images in nearly all rows of equal length."""
    if not rows:
        return []
    return [
        at for at in range(len(rows[0])) if sum(looks_like_image(row[at]) for row in rows) >= _SHARE * max(1, len(rows))
    ]
