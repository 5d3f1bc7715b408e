"""The split of each line: a column, one for the whole list, files that list images, or a folder of the image's path."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unicl_cli.data.pictures import SUFFIXES
from unicl_cli.data.sources.lists.cells import looks_like_image, strip_number
from unicl_cli.data.sources.splits import split_of
from unicl_cli.data.sources.text_file import read_strict_lines
from unicl_cli.errors import UniclError

FOLDER = "folder"
"""The value of ``split`` for the folder of the image's path that is named like a split."""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class SplitRule(NamedTuple):
    """How lines get their split: ``fixed``, by ``files`` (image -> split) or ``by_folder``; else by a column."""

    fixed: str = ""
    files: Mapping[str, str] | None = None
    by_folder: bool = False

    def split(self, cell: str, image: str) -> str | None:
        """Return the split of a line; None if the image is in no file, or in no folder of a split."""
        if self.by_folder:
            return split_of_path(image)
        if self.files is None:
            return self.fixed or cell
        return self.files.get(_stem(image))

    def check(self, path: Path, kept: int, left_out: int) -> None:
        """Raise UniclError if the files of the splits list none of the images of ``path``, or all of them in one."""
        if self.by_folder and not kept:
            raise UniclError(f"{path}: no image is in a folder named like a split", "remove split=folder")
        if self.files is None:
            return
        hint = "write the split into a column 'split' of the list, or a file for each split: split=train.txt,test.txt"
        if left_out and not kept:
            example = next(iter(self.files), "nothing")
            raise UniclError(f"{path}: none of its images is in the files of split=, which list {example}", hint)
        if kept and not left_out and len(named := set(self.files.values())) == 1:
            split = next(iter(named))
            raise UniclError(
                f"{path}: the file of split= lists all of its images, so all of them would be '{split}'",
                f"add split={split} if they are; else {hint}",
            )


def read_rule(path: Path, given: str) -> SplitRule | None:
    """Return the rule that ``split=`` spells: a split, or files with a path per line; None if it is neither."""
    if fixed := split_of(given):
        return SplitRule(fixed)
    if given == FOLDER:
        return SplitRule(by_folder=True)
    named = given.split(",")
    files = [file for name in named if (file := _find_file(path, name.strip()))]
    return SplitRule(files=_read_files(files)) if len(files) == len(named) else None


def _read_files(files: Iterable[Path]) -> dict[str, str]:
    """Return image -> split of files that list images. UniclError for an image in two splits."""
    found: dict[str, str] = {}
    for file in files:
        split = _split_of_name(file)
        for line in read_strict_lines(file):
            if not (image := _first_cell(line)):
                continue
            other = found.setdefault(_stem(image), split)
            if other != split:
                raise UniclError(f"{file}: {image} is also in the split '{other}'", "list each image in one split")
    return found


def split_of_path(image: str) -> str | None:
    """Return the split that the first such folder of a path names; None if there is none."""
    folders = image.replace("\\", "/").split("/")[:-1]
    return next((split for folder in folders if (split := split_of(folder))), None)


def describe_folders(images: Iterable[str]) -> str:
    """Return how many images lie in folders named like splits, by split; empty if all those are of train."""
    counts = Counter(split for image in images if (split := split_of_path(image)))
    return ", ".join(f"{split} {count:,}" for split, count in sorted(counts.items())) if {*counts} - {"train"} else ""


def _find_file(path: Path, name: str) -> Path | None:
    """Return the file beside the list, else in the current directory; None if there is none."""
    return next((file for file in (path.parent / name, Path(name)) if name and file.is_file()), None)


def _split_of_name(file: Path) -> str:
    if found := [split for word in _WORDS.findall(file.stem) if (split := split_of(word))]:
        return found[0]
    raise UniclError(
        f"{file}: its name does not say which split it lists", f"rename it, for example to test{file.suffix}"
    )


def _first_cell(line: str) -> str:
    """Return a line that is an image, else its first cell: some lists have a class or a number behind the image."""
    cell = "" if line.startswith("#") else line.strip()
    return cell if looks_like_image(cell) or not cell else cell.split()[0]


def _stem(image: str) -> str:
    """Return a path without the suffix of an image: lists of splits often leave it out."""
    path = PurePosixPath(strip_number(image).replace("\\", "/"))
    return str(path.with_suffix("") if path.suffix[1:].lower() in SUFFIXES else path)
