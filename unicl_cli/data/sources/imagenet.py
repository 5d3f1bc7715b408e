"""ImageNet from its official tar files, read in place: a tar of one tar per synset, and a flat tar with a key."""

import gzip
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.pictures import Extent, read_extent
from unicl_cli.data.sources import catalogue
from unicl_cli.data.sources.data_dirs import check_md5, find_file
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.data.sources.tar_members import iter_members
from unicl_cli.data.wordnet import lemmas, names_of_synset, synsets
from unicl_cli.errors import Remark, UniclError
from unicl_cli.formats import count_of
from unicl_cli.storage.spool import Spool

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
FALL11, WINTER21 = "fall11_whole.tar", "winter21_whole.tar"
KIT_BYTES = 100_000_000
"""Limit for the unpacked development kit; the official one has 10 MB."""
_SYNSET = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"_(\d+)\.JPEG$")


class Member(NamedTuple):
    """A file inside an uncompressed tar: ``offset`` counts from the start of the outermost one."""

    name: str
    offset: int
    size: int


def _pack(pair: tuple[str, Member]) -> tuple[Any, ...]:
    synset, member = pair
    return synset, *member


def _unpack(packed: Sequence[Any]) -> tuple[str, Member]:
    synset, *member = packed
    return synset, Member._make(member)


class ImageNet:
    """ImageNet as a source; a row's ``ref`` is ``file@offset+size``, so a worker reads only that part of the tar."""

    templates = "clip80"
    left_out: frozenset[str] = frozenset()

    def __init__(self, name: str, kind: str, files: dict[str, Path], verify: bool) -> None:  # noqa: FBT001
        self.name, self.kind, self.files, self.verify = name, kind, files, verify
        self.notes: list[str] = []
        self.dataset = catalogue.known_datasets()[name]
        self.train = next((of for of in (TRAIN, FALL11, WINTER21) if of in files), None)
        """The file of the training images."""

    @property
    def splits(self) -> Sequence[str]:
        return [split for split, file in (("train", self.train), ("val", VAL)) if file in self.files]

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """ImageNet-1K's classes in the usual numbering; of the large release, the classes in the file."""
        if self.kind != "labels":
            return ()
        if self.train not in (None, TRAIN):
            return tuple(ClassName(key, lemmas().get(key, (key,))) for key in sorted({key for key, _ in self._train}))
        return tuple(ClassName(key, names_of_synset(key)) for key in synsets())

    def rows(self, split: str) -> Sequence[Row]:
        """Return the rows in the order of the tar."""
        self._check_md5()
        members = self._train if split == "train" else self._val
        numbers = {c.key: number for number, c in enumerate(self.classes)}
        file = self.train if split == "train" else VAL
        if self.kind == "labels" and (unknown := {key for key, _ in members} - numbers.keys()):
            raise UniclError(
                f"{self.files[file or VAL]}: synset {min(unknown)} is not in {self.name}",
                f"replace it by the file of {self.name}",
            )
        return spool_rows(
            Row(f"{split}/{key}/{member.name}", f"{file}@{member.offset}+{member.size}", (), numbers.get(key, NO_LABEL))
            for key, member in members
        )

    def read(self, row: Row) -> dict[str, bytes]:
        """Return the bytes of the image's file."""
        return {"image": read_extent(self.extent(row))}

    def extent(self, row: Row) -> Extent:
        """Return the place of the image in its tar."""
        file, _, place = row.ref.rpartition("@")
        offset, _, size = place.partition("+")
        return Extent(str(self.files[file]), int(offset), int(size))

    @cached_property
    def _train(self) -> Sequence[tuple[str, Member]]:
        """(synset, image) pairs: each member of the tar is a tar of one synset's images."""
        file = self.files[self.train or TRAIN]
        found = Spool[tuple[str, Member]](_pack, _unpack)
        left_out: dict[str, int] = {}
        with _open_tar(file) as outer:
            for inner in list_members(outer, 0, file.stat().st_size, file):
                synset = inner.name.removesuffix(".tar")
                if not inner.name.endswith(".tar") or not _SYNSET.fullmatch(synset):
                    raise UniclError(
                        f"{file}: contains {inner.name}",
                        "use the official file, which contains n01440764.tar and so on",
                    )
                members = list(list_members(outer, inner.offset, inner.size, file))
                if synset in self.left_out:
                    left_out[synset] = len(members)
                else:
                    found.extend((synset, member) for member in members)
        if left_out:
            self.notes.append(
                Remark(
                    f"{self.name}: left out {len(left_out):,} of the {len(self.left_out):,} synsets of ImageNet-1K, "
                    f"with {count_of(sum(left_out.values()), 'image')}"
                )
            )
        return found

    @cached_property
    def _val(self) -> list[tuple[str, Member]]:
        """(synset, image) pairs by the key of the development kit, whose numbers are not class numbers."""
        file = self.files[VAL]
        answers = _read_answers(self.files[DEVKIT]) if self.kind == "labels" else []
        with _open_tar(file) as flat:
            found = sorted(list_members(flat, 0, file.stat().st_size, file))
        if self.kind != "labels":
            return [("", member) for member in found]
        numbered = [(int(match[1]), member) for member in found if (match := _NUMBER.search(member.name))]
        if len(numbered) < len(found) or any(not 1 <= number <= len(answers) for number, _ in numbered):
            raise UniclError(
                f"{file}: does not match the {len(answers)} answers in {DEVKIT}", "use both files of the same year"
            )
        return [(answers[number - 1], member) for number, member in numbered]

    def _check_md5(self) -> None:
        for name, file in self.files.items() if self.verify else ():
            if expected := self.dataset.md5_of(name):
                check_md5(file, expected, self.name)
        self.verify = False


def imagenet(*, kind: str, path: str | None = None, verify: bool = False) -> ImageNet:
    """ImageNet-1K from `ILSVRC2012_img_train.tar` and `_img_val.tar` (with the devkit) in `--data-dir` or ``path``.

    One of the two is enough. ``verify=true`` compares their md5 first, which reads 145 GB.
    """
    found, tried = _find_files("imagenet", path, (TRAIN, VAL, DEVKIT))
    lacks = [DEVKIT] if VAL in found and DEVKIT not in found and kind == "labels" else []
    if TRAIN not in found and VAL not in found:
        lacks = [TRAIN, VAL]
    if lacks:
        raise catalogue.missing_error(catalogue.known_datasets()["imagenet"], lacks, tried)
    return ImageNet("imagenet", kind, found, verify)


def imagenet22k(*, kind: str, path: str | None = None) -> ImageNet:
    """ImageNet's fall 2011 release, 21,841 synsets, from `fall11_whole.tar` in `--data-dir` or ``path``."""
    return _open_release("imagenet22k", FALL11, kind, path)


def imagenet21k(*, kind: str, path: str | None = None) -> ImageNet:
    """``imagenet22k`` without the synsets of ImageNet-1K, so that no model sees them."""
    source = _open_release("imagenet21k", FALL11, kind, path)
    source.left_out = frozenset(synsets())
    return source


def imagenet21k_winter(*, kind: str, path: str | None = None) -> ImageNet:
    """ImageNet's release of winter 2021 from `winter21_whole.tar` in `--data-dir` or ``path``.

    It contains classes of ImageNet-1K.
    """
    return _open_release("imagenet21k-winter", WINTER21, kind, path)


def _open_release(name: str, file: str, kind: str, path: str | None) -> ImageNet:
    found, tried = _find_files(name, path, (file,), ("imagenet22k",))
    if not found:
        raise catalogue.missing_error(catalogue.known_datasets()[name], tried=tried)
    return ImageNet(name, kind, found, verify=False)


def _find_files(
    name: str, path: str | None, files: Sequence[str], others: Sequence[str] = ()
) -> tuple[dict[str, Path], list[Path]]:
    """Return the files by name, and the folders that were looked in: those of the data set, and of ``others``."""
    found: dict[str, Path] = {}
    tried: list[Path] = []
    for file_name in files:
        for under in (name, *others):
            file, places = find_file(file_name, under, path)
            tried += [place.parent for place in places]
            if file is not None and file.name == file_name:
                found.setdefault(file_name, file)
    return found, list(dict.fromkeys(tried))


def list_members(file: IO[bytes], start: int, size: int, path: Path) -> Iterator[Member]:
    """Yield the regular files of the tar at ``start``, without links, devices and folders."""
    try:
        for member in iter_members(file, start, size):
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file")
            if member.isreg():
                yield Member(member.name.rpartition("/")[2], start + member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise UniclError(f"{path}: incomplete or not a tar at byte {start}: {error}", "download it again") from error


def _open_tar(file: Path) -> IO[bytes]:
    content = file.open("rb", buffering=0)  # headers lie far apart: a buffer would read what is skipped
    if content.read(2) == b"\x1f\x8b":
        content.close()
        raise UniclError(f"{file}: compressed, so that images cannot be read in place", "unpack it once with gunzip")
    return content


def _read_answers(devkit: Path) -> list[str]:
    """Return the synset of each validation image; the kit numbers its own table, not the sorted synsets."""
    from scipy.io import loadmat

    contents: dict[str, bytes] = {}
    try:
        with gzip.open(devkit) as content:
            for member in iter_members(cast("IO[bytes]", content), 0, KIT_BYTES):
                name = member.name.rpartition("/")[2]
                if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt") and member.isreg():
                    content.seek(member.offset_data)
                    contents[name] = content.read(member.size)
        table: Any = loadmat(io.BytesIO(contents["meta.mat"]), squeeze_me=True)["synsets"]
        by_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
        return [by_number[int(line)] for line in contents["ILSVRC2012_validation_ground_truth.txt"].split()]
    except (tarfile.TarError, OSError, KeyError, ValueError, EOFError) as error:
        raise UniclError(f"{devkit}: not the official development kit: {error}", "download it again") from error
