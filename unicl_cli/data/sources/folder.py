"""A folder of images as a source, with its subfolders as classes."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.class_entry import NameList
from unicl_cli.data.class_numbers import LabelledClasses, read_names
from unicl_cli.data.media import MAPS
from unicl_cli.data.pictures import Extent, file_extent
from unicl_cli.data.sources.folder_files import ARCHIVES, FoundFiles, scan_folder, spool_paths
from unicl_cli.data.sources.folder_layout import Layout, find_layout
from unicl_cli.data.sources.folder_lists import (
    as_options,
    check_class_folders,
    check_each_split,
    find_likely_lists,
    note_split_lists,
)
from unicl_cli.data.sources.folder_names import list_some, match_folders, name_folders
from unicl_cli.data.sources.lists.files import find_lists, webdataset
from unicl_cli.data.sources.media_files import (
    PairedFiles,
    image_stem,
    pair_files,
    read_files,
    read_kinds,
    split_name,
    stamp_files,
)
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.data.sources.splits import ORDER
from unicl_cli.data.sources.text_file import UTF8, read_text
from unicl_cli.errors import Remark, UniclError
from unicl_cli.storage.buckets import CHUNK, Buckets
from unicl_cli.storage.spool import Spool
from unicl_cli.storage.text_hashes import find_repeated, hash_text, hash_texts, is_among

MAX_CAPTIONS = 1_000_000
"""Maximum number of bytes of the captions beside an image."""


class FolderOptions(NamedTuple):
    """Options of a folder as a source; see ``folder``."""

    names: Literal["leaf", "path"] | None = None
    given: NameList | None = None
    first: int | None = None
    depth: int | None = None
    exclude: tuple[str, ...] = ()
    splits: bool = True
    encoding: str = UTF8
    media: tuple[str, ...] = ()


class Folder:
    """Images under ``path``; an image's class is its folder below the split. Hidden files are ignored.

    For captions, the texts of ``a/b.jpg`` are the lines of ``a/b.txt``. Its media are ``a/b.ogg``, ``a/b.depth.png``, …
    """

    templates = "clip80"

    def __init__(self, path: str, kind: str, options: FolderOptions) -> None:
        self.path, self.kind, self.options, self.media = Path(path), kind, options, options.media
        self._names_notes: list[str] = []
        self._unread: dict[str, str] = {}

    @cached_property
    def _found(self) -> FoundFiles:
        """All files and folders of the source. UniclError if a folder cannot be read, or has no images."""
        try:
            found = scan_folder(self.path, self.options.exclude, media=bool(self.media))
        except OSError as error:
            raise UniclError(
                f"{error.filename}: cannot be read: {error.strerror}", "check the permissions of this folder"
            ) from error
        if not found.images:
            raise UniclError(f"{self.path}: no images in this folder", self._suggest_hint())
        return found

    @cached_property
    def _layout(self) -> Layout:
        return find_layout(str(self.path), self._found.holding) if self.options.splits else Layout()

    @cached_property
    def files(self) -> Mapping[str, Sequence[PurePosixPath]]:
        """Split -> its images, sorted, relative to ``path``."""
        splits: dict[str, Spool[PurePosixPath]] = defaultdict(spool_paths)
        for file in self._found.images:
            if split := self._layout.split_of(file.parts[:-1]):
                splits[split].append(file)
        return dict(splits)

    @cached_property
    def _paired(self) -> PairedFiles:
        images = (file for files in self.files.values() for file in files)
        return pair_files(images, self._found.media, self.media, str(self.path))

    def _suggest_hint(self) -> str:
        if lists := find_lists(self.path):
            return f"use the list in this folder as the source: {lists[0]}"
        if packed := sorted(file.name for file in self.path.iterdir() if file.suffix.lower() in ARCHIVES):
            tars = f", or use {webdataset(self.path)} if it is a WebDataset" if packed[0].endswith(".tar") else ""
            return f"unpack {packed[0]} first{tars}"
        return "check the folder: image files end in .jpg, .png, .webp, …"

    @property
    def splits(self) -> Sequence[str]:
        return [split for split in ORDER if split in self.files]

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The folders with at least one image, sorted by path."""
        return self._labelled.classes if self.kind == "labels" else ()

    @cached_property
    def _labelled(self) -> LabelledClasses:
        """The classes, and the number of each class folder."""
        keys = {self._class_in(folders) for folders in self._kept_folders()}
        if keys == {""} or (self.options.names is None and self.options.given is None):
            check_class_folders(self.path, keys, self._found)
            check_each_split(self.path, self._folders_by_split(), self._layout.splits)
        folders = sorted(keys - {""})
        if twins := self._class_twins():
            self._names_notes.append(
                f"classes of folders whose names differ only in Unicode form ({len(twins):,}): {list_some(twins)}"
            )
        if self.options.given:
            return match_folders(self.options.given, folders, self.options.first, self._names_notes)
        return name_folders(folders, self.options.names, self._names_notes)

    @property
    def notes(self) -> list[str]:
        """Notes for ``prepare`` on splits, on names, and on what is neither an image nor a class."""
        _ = self.classes
        notes = [*self._note_splits(), *self._names_notes, *self._note_other_files(), *self._note_media()]
        if empty := self._find_empty_folders() if self.kind == "labels" else []:
            notes.append(f"folders without images are not classes ({len(empty):,}): {list_some(empty)}")
        return [type(note)(f"{self.path.name}: {note}") for note in notes]

    def _note_splits(self) -> list[str]:
        renamed = {name: split for name, split in sorted(self._layout.splits.items()) if name != split}
        notes: list[str] = []
        if renamed:
            shown = ", ".join(f"{name} is {split}" for name, split in renamed.items())
            notes.append(Remark(f"folders as splits: {shown}"))
        loose = sum(self._layout.split_of(file.parts[:-1]) is None for file in self._found.images)
        if loose:
            notes.append(f"images beside the split folders are left out ({loose:,})")
        if self._layout.level is None and self.kind == "labels":
            notes += note_split_lists(self._found)
        return notes

    def _note_other_files(self) -> list[str]:
        notes: list[str] = []
        if excluded := self._found.excluded:
            notes.append(Remark(f"images left out by exclude: {excluded:,}"))
        if twins := self._twins:
            shown = list_some(sorted(twins.values()))
            what = "files whose names look the same have a number in their keys"
            notes.append(Remark(f"{what} ({len(twins):,}): {shown}"))
        others = Counter(self._found.others)
        if self.kind == "captions":
            del others[".txt"]
        if unread := [f"{file} ({why})" for file, why in self._unread.items()]:
            notes.append(f"files of captions that cannot be read ({len(unread):,}): {list_some(unread)}")
        if others:
            most = sorted(others.items(), key=lambda item: (-item[1], item[0]))
            said = list_some([f"{suffix or 'without a suffix'} {count:,}" for suffix, count in most])
            notes.append(Remark(f"files that are not images are ignored ({others.total():,}): {said}"))
        return notes

    def _note_media(self) -> list[str]:
        if self.media:
            return self._paired.notes
        maps = [file for file in self._found.images if (named := split_name(str(file))) and named[1] in MAPS]
        stems = {image_stem(file) for file in self._found.images} if maps else set[str]()
        beside = [str(file) for file in maps if (named := split_name(str(file))) and named[0] in stems]
        if not beside:
            return []
        what = "images named like the depth or heat of another image are separate rows"
        return [f"{what} ({len(beside):,}): {list_some(beside)}; media=depth or media=thermal makes pairs of them"]

    def _find_empty_folders(self) -> list[str]:
        """Return the class keys of leaf folders without images."""
        holding = {parts[:count] for parts in self._found.holding for count in range(len(parts) + 1)}
        leaves = self._found.folders - {parts[:-1] for parts in self._found.folders}
        empty = {_printable("/".join(self._layout.class_parts(parts))) for parts in leaves - holding}
        return sorted(empty - {""} - self._labelled.numbers.keys())

    def rows(self, split: str) -> Sequence[Row]:
        """Return a row for each image of a class; one that cannot be decoded is rejected by name."""
        files = self.files[split]
        if self.kind == "captions":
            self._check_captions()
            return spool_rows(row for file in files for row in self._captioned_row(file))
        if self.kind == "images":
            return spool_rows(self._row(file, NO_LABEL) for file in files)
        labels, loose = self._labelled.numbers, spool_paths()
        rows = spool_rows()
        for file in files:
            label = labels.get(self._class_in(file.parts[:-1]), NO_LABEL)
            if label == NO_LABEL:
                loose.append(file)
            else:
                rows.append(self._row(file, label))
        return rows.extend(self._row(file, NO_LABEL) for file in loose)  # loose images last

    def read(self, row: Row) -> dict[str, bytes]:
        """Return the bytes of the image and its media. MediaError for media that are not of their kind."""
        return read_files(self.path, row)

    def stamp(self, row: Row) -> int:
        """Return the size of the file, which reveals an edited source; -1 if the file is gone. Media change it."""
        return stamp_files(self.path / row.ref, [self.path / file for _, file in row.media])

    def extent(self, row: Row) -> Extent:
        return file_extent(self.path / row.ref)

    def _kept_folders(self) -> Iterator[tuple[str, ...]]:
        """Yield the folders of the images that are in a split."""
        return (parts for parts in self._found.holding if self._layout.split_of(parts))

    def _folders_by_split(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for parts in self._kept_folders():
            found[self._layout.split_of(parts) or ""].add(self._class_in(parts))
        return found

    def _class_in(self, folders: tuple[str, ...]) -> str:
        parts = self._layout.class_parts(folders)
        return _printable("/".join(parts[: self.options.depth]))

    def _row(self, file: PurePosixPath, label: int) -> Row:
        media = self._paired.media.get(image_stem(file), ()) if self.media else ()
        return Row(self._twins.get(file) or _printable(str(file)), str(file), (), label, media=media)

    @cached_property
    def _twins(self) -> dict[PurePosixPath, str]:
        """The keys of files whose names are printed like that of an earlier file; they get a number."""
        hashes = Buckets(1)
        names = (_printable(str(file)) for file in self._odd_files())
        while len(of := hash_texts(islice(names, CHUNK))):
            hashes.add(of)
        doubtful = find_repeated(hashes)
        found: dict[PurePosixPath, str] = {}
        met: set[str] = set()
        for file in self._odd_files() if len(doubtful) else ():
            key, number = _printable(str(file)), 1
            if not is_among(hash_text(key), doubtful):
                continue
            while key in met:
                number += 1
                key = found[file] = f"{_printable(str(file))}~{number}"
            met.add(key)
        return found

    def _odd_files(self) -> Iterator[PurePosixPath]:
        """Yield the images whose names are not ASCII: only these may be printed like another."""
        return (file for files in self.files.values() for file in files if not str(file).isascii())

    def _class_twins(self) -> list[str]:
        """Return the classes of several folders, whose names differ only in their Unicode form.

        UniclError if they differ in bytes that are not UTF-8: these may be different names.
        """
        folders: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for parts in self._kept_folders():
            folders[self._class_in(parts)].add(self._layout.class_parts(parts)[: self.options.depth])
        twins = sorted(name for name, of in folders.items() if len(of) > 1)
        if odd := next((name for name in twins if "\ufffd" in name), None):
            raise UniclError(
                f"{self.path}: several class folders are named '{odd}', apart from bytes that are not UTF-8",
                "rename these folders in UTF-8",
            )
        return twins

    def _check_captions(self) -> None:
        if any((self.path / file.with_suffix(".txt")).exists() for files in self.files.values() for file in files):
            return
        hint = "write the captions of 1.jpg into 1.txt, or use a list: captions.csv with the columns image,caption"
        if lists := find_likely_lists(self._found):
            hint = f"use the list in this folder as the source: {as_options(self.path, lists, 'captions')}"
        raise UniclError(f"{self.path}: no captions beside the images", hint)

    def _captioned_row(self, file: PurePosixPath) -> Iterator[Row]:
        beside = file.with_suffix(".txt")
        try:
            text = read_text(self.path / beside, self.options.encoding, str(self.path), MAX_CAPTIONS)
        except OSError as error:  # the row stays and is counted as one without a text
            text = ""
            if not isinstance(error, FileNotFoundError):
                self._unread.setdefault(str(beside), error.strerror or str(error))
        yield self._row(file, NO_LABEL)._replace(texts=tuple(line for line in text.splitlines() if line.strip()))


def folder(  # noqa: PLR0913 - a factory's signature is its options
    *,
    path: str,
    kind: str,
    names: Literal["leaf", "path"] | None = None,
    classes: str | None = None,
    first: int | None = None,
    depth: int | None = None,
    exclude: str | None = None,
    splits: bool = True,
    encoding: str = UTF8,
    media: str | None = None,
) -> Folder:
    """A folder of images: ``cat/1.jpg``, or ``train/cat/1.jpg`` if the first-level folders are splits.

    Without ``names``, a class has the name of its folder, a WordNet id its name, and a count (`001.`) goes; `leaf`
    keeps the folder's name as it is, `path` takes all folders. ``classes`` is a file of folders with names;
    ``depth=1`` makes classes of the first level alone. ``exclude`` are folders or files to leave out, with commas
    between them; `*` is any text. With ``splits=false``, all folders are classes. ``encoding`` is
    that of the captions beside the images. ``media`` are kinds of files beside the images, with commas between them:
    `audio` (``1.wav``, ``1.flac``, ``1.ogg`` beside ``1.jpg``), `depth` (``1.depth.png``), `thermal`
    (``1.thermal.png``) and `imu` (``1.imu.npy``, ``1.imu.csv``).
    """
    if not Path(path).is_dir():
        raise UniclError(f"{path}: no such folder", "check the path: it must be the folder that holds the images")
    if depth is not None and depth < 1:
        raise UniclError(f"depth={depth}: below 1", "use depth=1 for the first level of folders")
    patterns = tuple(pattern.strip().strip("/") for pattern in (exclude or "").split(",") if pattern.strip())
    kinds, given = read_kinds(media, path), read_names(classes, first)
    return Folder(path, kind, FolderOptions(names, given, first, depth, patterns, splits, encoding, kinds))


def _printable(path: str) -> str:
    """Return the path in NFC (macOS and Linux differ), with bytes replaced that are not UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(path).decode("utf-8", "replace"))
