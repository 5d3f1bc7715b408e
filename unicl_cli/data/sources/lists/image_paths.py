"""Places of a list's images: relative to the list or to ``root``, with a suffix added, and where else they may be."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from unicl_cli.data.pictures import Extent, file_extent, read_file
from unicl_cli.data.sources.lists.cells import looks_like_image, strip_number
from unicl_cli.data.sources.lists.record import ListOptions
from unicl_cli.data.sources.media_files import stamp_files
from unicl_cli.data.sources.splits import split_of, split_within
from unicl_cli.data.sources.zip_images import ZipImages
from unicl_cli.errors import UniclError

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp", ".JPG")
"""Endings that are tried where a list has names without one."""
_SEARCHED = 200
"""Maximum number of folders that are searched for the images of a list."""
_LOOKED_AT = 100
"""The most files of a folder that are looked at to find out whether it holds images."""


class ImagePaths:
    """The way from a cell to a file.

    ``cut`` leading parts of absolute paths are dropped: of another machine's paths, what is below ``root`` is left.
    """

    def __init__(self, path: Path, options: ListOptions) -> None:
        self.path, self.options, self.root, self.suffix = path, options, options.root, options.suffix
        if self.suffix and "." not in self.suffix:
            self.suffix = f".{self.suffix}"
        self.cut: int | None = None

    @cached_property
    def folder(self) -> Path:
        """The folder or zip that paths are relative to: ``root`` beside the list, else in the current directory."""
        if self.root is None:
            return self.path.parent
        given = Path(self.root).expanduser()
        for place in (self.path.parent / given, given):
            if place.is_dir() or (_is_zip(place) and place.is_file()):
                return place
        raise UniclError(f"{self.path}: no folder or zip '{self.root}'", "check root=, which is relative to the list")

    @cached_property
    def packed(self) -> ZipImages | None:
        """The zip that ``root`` names; None if the images are files. UniclError if it has to hold media."""
        if self.root is None or self.folder.is_dir():
            return None
        if self.options.media:
            raise UniclError(f"{self.path}: files of media cannot be read from {self.folder}", "unpack it")
        return ZipImages(self.folder)

    def ref(self, cell: str) -> str:
        """Return the path of a cell as a row keeps it."""
        path = strip_number(cell)
        if self.suffix and not looks_like_image(path):
            path += self.suffix
        if self.cut is not None and is_absolute(path):
            path = "/".join(_parts(path)[self.cut :])
        return path

    def media_ref(self, cell: str) -> str:
        """Return the path of a cell with a file of media as a row keeps it: neither suffix nor number is of images."""
        return "/".join(_parts(cell)[self.cut :]) if self.cut is not None and is_absolute(cell) else cell

    def file(self, ref: str) -> Path:
        r"""Return the file of a row, which another system may spell: ``cat\1.jpg``, ``1.JPG``, ``é`` as two."""
        file = self.folder / ref
        if _exists(file):
            return file
        return next((found for spelled in _respell(ref) if _exists(found := self.folder / spelled)), file)

    def exists(self, ref: str) -> bool:
        """Return whether the image of a row is there."""
        return _exists(self.file(ref)) if self.packed is None else self.packed.find(ref) is not None

    def read(self, ref: str) -> bytes:
        """Return the bytes of a row's image. OSError or ImageError as `read_file`."""
        return read_file(self.file(ref)) if self.packed is None else self.packed.read(ref)

    def extent(self, ref: str) -> Extent | None:
        """Return the place of a row's image; an empty one for a missing file, None if it is not stored as it is."""
        return file_extent(self.file(ref)) if self.packed is None else self.packed.extent(ref)

    def stamp(self, ref: str, media: Sequence[Path]) -> int:
        """Return the size of a row's image, -1 if it is missing; files of media change it."""
        if self.packed is None:
            return stamp_files(self.file(ref), media)
        member = self.packed.find(ref)
        return -1 if member is None else member.size

    def fit(self, cells: Sequence[str]) -> None:
        """Choose the ``cut`` that leads from absolute paths of another machine to files below ``root``."""
        paths = [self.ref(cell) for cell in cells if is_absolute(cell.strip())]
        if self.root is None or not paths:
            return
        for path in paths:
            parts = _parts(path)
            for cut in range(len(parts)):
                if self.exists("/".join(parts[cut:])):
                    self.cut = cut
                    return

    def check(self, refs: Sequence[str]) -> None:
        """Raise UniclError if none of these images exists, with the place where they are."""
        if not refs or any(map(self.exists, refs)):
            return
        if self.root is None and any(_WINDOWS.match(ref) for ref in refs) and os.name != "nt":
            first = next(ref for ref in refs if _WINDOWS.match(ref))
            raise UniclError(
                f"{self.path}: its images have absolute Windows paths, for example {first}",
                f"name the folder that they are in: {self.options.src(self.path, root='FOLDER')}",
            )
        raise UniclError(
            f"{self.path}: its images do not exist, for example {self.folder / refs[0]}", self._advise(refs)
        )

    def _advise(self, refs: Sequence[str]) -> str:
        if found := self.locate(refs):
            return f"read them from the folder where they are: {self.options.src(self.path, **found)}"
        named = f"name the folder that they are in: {self.options.src(self.path, root='FOLDER')}"
        if any(map(is_absolute, refs)):
            return named
        return f"correct the paths, which are relative to the list, or {named}"

    def locate(self, refs: Sequence[str]) -> dict[str, str]:
        """Return the options ``root`` and ``suffix`` with which the first images exist; none if no folder is sure.

        If several folders have images of these names, it is the one named like the split of the list.
        """
        paths = [ref.replace("\\", "/") for ref in refs[:3]]
        if not all(paths):
            return {}
        folders = islice(self._folders(), _SEARCHED)
        found = {folder: suffix for folder in folders if (suffix := _find_suffix(folder, paths)) is not None}
        if len(found) > 1:
            split = split_within(self.path.stem)
            found = {folder: suffix for folder, suffix in found.items() if split_of(folder.name) == split}
        return self._options(*found.popitem()) if len(found) == 1 else {}

    def _options(self, folder: Path, suffix: str) -> dict[str, str]:
        root = Path(os.path.relpath(folder, self.path.parent)).as_posix()
        return {**({"root": root} if root != "." else {}), **({"suffix": suffix} if suffix else {})}

    def _folders(self) -> Iterator[Path]:
        """Yield the list's folder and three levels below it; without images there, also those above and beside."""
        here = self.path.parent.resolve()
        below = list(islice(_walk(here, 3), _SEARCHED))
        yield from below
        if not any(map(_holds_images, below)):
            yield from _walk(here.parent, 2)


def _find_suffix(folder: Path, paths: Sequence[str]) -> str | None:
    """Return the suffix with which all paths are files of a folder; None without one.

    Absolute paths may lose folders of another machine.
    """
    most = max((len(_parts(path)) for path in paths if is_absolute(path)), default=0)
    for cut in (None, *range(most)):
        names = ["/".join(_parts(path)[cut:]) if cut is not None else path for path in paths]
        for suffix in _SUFFIXES if not all(map(looks_like_image, names)) else _SUFFIXES[:1]:
            if all(name and (folder / f"{name}{suffix}").is_file() for name in names):
                return suffix
    return None


def _respell(ref: str) -> Iterator[str]:
    """Yield other spellings of a path: those of Windows, of macOS, and its suffix in the other case."""
    plain = ref.replace("\\", "/")
    stem, dot, suffix = plain.rpartition(".")
    forms = (plain, stem + dot + suffix.lower(), stem + dot + suffix.upper())
    yield from (form for form in forms if form != ref)
    if not ref.isascii():
        yield from (unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))


def is_absolute(path: str) -> bool:
    """Return whether a path is absolute here or on Windows."""
    return path.startswith("/") or _WINDOWS.match(path) is not None


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part]


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False


def _walk(folder: Path, levels: int) -> Iterator[Path]:
    """Yield a folder and those below it down to some levels, each before what is in it."""
    yield folder
    for inner in _subfolders(folder) if levels else ():
        yield from _walk(inner, levels - 1)


def _holds_images(folder: Path) -> bool:
    """Return whether one of the first files of a folder is named like an image."""
    try:
        with os.scandir(folder) as entries:
            return any(looks_like_image(entry.name) for entry in islice(entries, _LOOKED_AT))
    except OSError:
        return False


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []
