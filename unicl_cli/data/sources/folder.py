"""A folder of images as a source, with its subfolders as classes."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.pictures import SUFFIXES, read_file
from unicl_cli.data.sources.lists.files import find_lists, webdataset
from unicl_cli.data.sources.text_file import UTF8, read_text
from unicl_cli.errors import UniclError

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder name or list cell -> name of the split in a corpus."""
ARCHIVES = (".tar", ".gz", ".tgz", ".zip")
_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx", "icon\r"))


class Folder:
    """Images under ``path``; an image's class is its folder below the split. Hidden files are ignored.

    For captions, the texts of ``a/b.jpg`` are the lines of ``a/b.txt``.
    """

    templates = "clip80"

    def __init__(self, path: str, kind: str, encoding: str = UTF8) -> None:
        self.path, self.kind, self.encoding = Path(path), kind, encoding

    @cached_property
    def files(self) -> dict[str, list[PurePosixPath]]:
        """Split -> its files, sorted, relative to ``path``."""
        try:
            found = [PurePosixPath(file) for file in _iter_files(self.path)]
        except OSError as error:
            raise UniclError(
                f"{error.filename}: cannot be read: {error.strerror}", "check the permissions of this folder"
            ) from error
        tops = {file.parts[0] for file in found if len(file.parts) > 1}
        splits: dict[str, list[PurePosixPath]] = defaultdict(list)
        in_splits = bool(tops) and tops <= set(SPLITS)
        for file in found:
            if not in_splits:
                splits["train"].append(file)
            elif len(file.parts) > 1:  # a README or a list beside the splits belongs to none of them
                splits[SPLITS[file.parts[0]]].append(file)
        if not any(_is_image(file) for file in found):
            raise UniclError(f"{self.path}: no images in this folder", self._suggest_hint())
        return {split: sorted(files, key=str) for split, files in splits.items()}

    def _suggest_hint(self) -> str:
        if lists := find_lists(self.path):
            return f"use the list in this folder as the source: {lists[0]}"
        if packed := sorted(file.name for file in self.path.iterdir() if file.suffix.lower() in ARCHIVES):
            tars = f", or use {webdataset(self.path)} if it is a WebDataset" if packed[0].endswith(".tar") else ""
            return f"unpack {packed[0]} first{tars}"
        return "check the folder: image files end in .jpg, .png, .webp, …"

    @cached_property
    def in_splits(self) -> bool:
        return all(file.parts[0] in SPLITS for files in self.files.values() for file in files)

    @property
    def splits(self) -> Sequence[str]:
        return [split for split in ("train", "val", "test") if split in self.files]

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """The folders with at least one image, sorted by path."""
        if self.kind != "labels":
            return ()
        keys = {self._class_of(file) for files in self.files.values() for file in files if _is_image(file)}
        if keys == {""}:
            raise UniclError(
                f"{self.path}: its images are not in class folders",
                "make a folder for each class, or use --captions or --images for images without classes",
            )
        return tuple(ClassName(key, (_prompt_name(key),)) for key in sorted(keys - {""}))

    @property
    def notes(self) -> list[str]:
        """Notes for ``prepare`` on folders that are not classes."""
        known = {c.key for c in self.classes}
        empty = sorted(_find_empty_folders(self.path, self.in_splits) - known) if self.kind == "labels" else []
        if not empty:
            return []
        shown = ", ".join(empty[:5])
        if len(empty) > 5:
            shown += ", …"
        return [f"{self.path.name}: folders without images are not classes ({len(empty)}): {shown}"]

    def rows(self, split: str) -> list[Row]:
        """Return a row for each file of a class, image or not: files that cannot be decoded are rejected by name."""
        if self.kind == "captions":
            self._check_captions()
            return [row for file in self.files[split] if _is_image(file) for row in self._captioned_row(file)]
        labels = {c.key: number for number, c in enumerate(self.classes)}
        files = self.files[split]
        if self.kind == "images":
            return [self._row(file, NO_LABEL) for file in files if _is_image(file)]
        loose = [file for file in files if self._class_of(file) not in labels and _is_image(file)]
        rows = [self._row(file, labels[self._class_of(file)]) for file in files if self._class_of(file) in labels]
        return rows + [self._row(file, NO_LABEL) for file in loose]

    def read(self, row: Row) -> dict[str, bytes]:
        """Return the bytes of the file."""
        return {"image": read_file(self.path / row.ref)}

    def stamp(self, row: Row) -> int:
        """Return the size of the file, which reveals an edited source; -1 if the file is gone."""
        try:
            return (self.path / row.ref).stat().st_size
        except OSError:
            return -1

    def _class_of(self, file: PurePosixPath) -> str:
        parts = file.parts[1:-1] if self.in_splits else file.parts[:-1]
        return _printable("/".join(parts))

    def _row(self, file: PurePosixPath, label: int) -> Row:
        return Row(_printable(str(file)), str(file), (), label)

    def _check_captions(self) -> None:
        if not any(file.suffix.lower() == ".txt" for files in self.files.values() for file in files):
            hint = "write the captions of 1.jpg into 1.txt, or use a list: captions.csv with the columns image,caption"
            if lists := find_lists(self.path):
                hint = f"use the list in this folder as the source: {' --captions '.join(map(_list_src, lists[:3]))}"
            raise UniclError(f"{self.path}: no captions beside the images", hint)

    def _captioned_row(self, file: PurePosixPath) -> Iterator[Row]:
        try:
            text = read_text(self.path / file.with_suffix(".txt"), self.encoding, str(self.path))
        except OSError:
            text = ""  # the row stays and is counted as one without a text
        yield self._row(file, NO_LABEL)._replace(texts=tuple(line for line in text.splitlines() if line.strip()))


def folder(*, path: str, kind: str, encoding: str = UTF8) -> Folder:
    """A folder of images: ``cat/1.jpg``, or ``train/cat/1.jpg`` if all first-level folders are splits.

    ``encoding`` is that of the captions beside the images.
    """
    if not Path(path).is_dir():
        raise UniclError(f"{path}: no such folder", "check the path: it must be the folder that holds the images")
    return Folder(path, kind, encoding)


def _iter_files(root: Path) -> Iterator[str]:
    """Yield the visible files under ``root``, as relative paths with ``/``; links are followed, but never in a loop."""
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset((os.path.realpath(root),)))]
    while pending:
        here, above = pending.pop()
        with os.scandir(root / here) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                    continue
                relative = f"{here}/{entry.name}" if here else entry.name
                if not entry.is_dir():
                    yield relative
                elif (real := os.path.realpath(entry.path)) not in above:
                    pending.append((relative, above | {real}))


def _find_empty_folders(root: Path, in_splits: bool) -> set[str]:  # noqa: FBT001
    """Return leaf folders without images, as class keys."""
    empty: set[str] = set()
    for here, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in _LITTER]
        parts = Path(here).relative_to(root).parts[1 if in_splits else 0 :]
        if parts and not folders and not any(_is_image(PurePosixPath(name)) for name in files):
            empty.add(_printable("/".join(parts)))
    return empty


def _is_image(file: PurePosixPath) -> bool:
    return file.suffix[1:].lower() in SUFFIXES


def _prompt_name(key: str) -> str:
    leaf = key.rpartition("/")[2]
    return " ".join(re.sub(r"[-_]", " ", leaf).split()) or leaf


def _list_src(path: Path) -> str:
    """Return a list as a source; one in a folder ``test`` is the test split."""
    split = SPLITS.get(path.parent.name.lower(), "train")
    return str(path) if split == "train" else f"'{path}?split={split}'"


def _printable(path: str) -> str:
    """Return the path in NFC (macOS and Linux differ), with bytes replaced that are not UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(path).decode("utf-8", "replace"))
