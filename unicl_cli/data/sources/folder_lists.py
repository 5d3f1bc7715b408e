"""Lists that lie beside the images of a folder: sources to use instead, and what they may say that folders do not."""

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path, PurePosixPath

from unicl_cli.data.sources.folder_files import FoundFiles
from unicl_cli.data.sources.folder_names import list_some
from unicl_cli.data.sources.splits import split_of, split_within
from unicl_cli.errors import UniclError

FEW = 32
"""The most files of a suffix that may be lists: more belong to an image each."""
_ANNOTATIONS = frozenset((".txt", ".xml", ".json"))
"""Suffixes of files with the boxes of one image, as YOLO, Pascal VOC and LabelMe write them, or of all images."""
_NO_LISTS = re.compile(r"(?i)(read.?me|licen[cs]e|notice|requirements|classes|class_?names|names|labels?)\b.*")
_PLAIN = frozenset(
    (
        *("all", "data", "dataset", "file", "files", "frame", "frames", "image", "images", "img", "imgs", "jpegimages"),
        *("jpeg", "jpegs", "jpg", "photo", "photos", "pic", "pics", "picture", "pictures", "png", "raw"),
    )
)
"""Names of folders that hold images of every class."""


def check_class_folders(path: Path, folders: Set[str], found: FoundFiles) -> None:
    """Raise UniclError if the class folders are none: the folder itself, those named `images`, or one beside a list."""
    lists = find_likely_lists(found)
    if not _are_plain(folders) and not (len(folders) == 1 and lists):
        return
    inside = sorted(folders - {""})
    shown = [f"'{folder}'" for folder in inside]
    what = f", but all in {list_some(shown, 2)}" if inside else ""
    hint = "make a folder for each class, or use --captions or --images for images without classes"
    if lists:
        hint = f"use the list of their labels: {as_options(path, lists, 'labels')}; or make a folder for each class"
    elif found.others.keys() & _ANNOTATIONS:
        hint = "write a list with the columns image,label from the annotations, or make a folder for each class"
    above = {folder.rpartition("/")[0] for folder in folders} - {""}
    if len(above) > 1 and not _are_plain(above):
        depth = max(folder.count("/") for folder in folders)
        hint = f"add ?depth={depth} if the folders above are the classes; or {hint}"
    elif inside:
        hint += f"; add ?names=leaf if {'this is the class' if len(inside) == 1 else 'these are classes'}"
    raise UniclError(f"{path}: its images are not in class folders{what}", hint)


def check_each_split(path: Path, folders: Mapping[str, Set[str]], names: Mapping[str, str]) -> None:
    """Raise UniclError if the images of a split are all in `images` or the like, and those of others in class folders.

    ``folders`` are the class folders by split, ``names`` the splits by the name of their folder.
    """
    plain = [split for split, of in sorted(folders.items()) if of - {""} and _are_plain(of)]
    if not plain or len(plain) == len(folders):
        return
    left_out = ",".join(name for name, split in sorted(names.items()) if split in plain)
    shown = " and ".join(f"{split} in '{sorted(folders[split] - {''})[0]}'" for split in plain)
    raise UniclError(
        f"{path}: the images of {shown} are not in class folders, as those of other splits are",
        f"add ?exclude={left_out} to leave them out, and use a list of their labels as another source",
    )


def _are_plain(folders: Set[str]) -> bool:
    """Return whether all class folders are named like those that hold images of every class."""
    leaves = {folder.rpartition("/")[2].casefold() for folder in folders}
    return {re.sub(r"[\W\d_]+$", "", leaf) or leaf for leaf in leaves} <= {"", *_PLAIN}


def find_likely_lists(found: FoundFiles) -> list[PurePosixPath]:
    """Return the files that may list the images, those that can be nothing else, and those of training, first."""
    few = [file for file in found.texts if found.others[file.suffix.lower()] <= FEW]
    stems = {file.stem for file in few}
    of_images = {stem for image in found.images if (stem := image.stem) in stems} if stems else set[str]()
    likely = [file for file in few if file.stem not in of_images and not _NO_LISTS.fullmatch(file.name)]
    sure = [file for file in found.lists if "submission" not in file.stem.lower()]  # its labels are made up
    return [*sorted(sure, key=_is_late), *sorted(likely, key=_is_late)]


def _is_late(file: PurePosixPath) -> tuple[bool, PurePosixPath]:
    return (split_within(file.stem) not in (None, "train"), file)


def as_options(path: Path, lists: Sequence[PurePosixPath], kind: str) -> str:
    """Return the first lists as they are given to `prepare`; one in a folder ``test`` is the test split."""
    return " ".join(f"--{kind} {_as_source(path / file)}" for file in lists[:3])


def note_split_lists(found: FoundFiles) -> list[str]:
    """Return a note on files that may say the split of each image, in a folder whose images are all in train."""
    named = [file for file in find_likely_lists(found) if split_within(file.stem)]
    if not named:
        return []
    shown = list_some([str(file) for file in named])
    what = f"files that may list splits are not read, and all images are in train ({len(named):,}): {shown}"
    return [f"{what}: to have these splits, use them as lists, or move the images into train and test"]


def _as_source(path: Path) -> str:
    split = split_of(path.parent.name)
    return str(path) if split in (None, "train") else f"'{path}?split={split}'"
