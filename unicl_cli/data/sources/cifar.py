"""CIFAR-10 and CIFAR-100 from their official archives, read without unpacking them or running pickled code."""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np
from PIL import Image

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.sources import catalogue
from unicl_cli.data.sources.data_dirs import check_md5, find_file
from unicl_cli.data.sources.plain_pickle import load_plain
from unicl_cli.data.sources.tar_members import iter_members
from unicl_cli.errors import UniclError

SIDE = 32
PLANES = 3 * SIDE * SIDE
LARGEST = 200_000_000
"""Limit for a member of the archive, in bytes; the largest official one has 155 MB."""
UNPACKED = 1_000_000_000
"""Limit for the unpacked archive, in bytes; the official ones have 190 MB."""
MAX_CLASSES, MAX_NAME = 10_000, 1000
"""Limits for the number of class names and the length of each; the official lists have up to 100 short ones."""


class Archive(NamedTuple):
    """The layout of an official archive; ``labels``: option -> key of the labels, key of their names in ``meta``."""

    name: str
    members: dict[str, tuple[str, ...]]
    meta: str
    labels: dict[str, tuple[str, str]]


CIFAR10 = Archive(
    "cifar10",
    {
        "train": tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        "test": ("cifar-10-batches-py/test_batch",),
    },
    "cifar-10-batches-py/batches.meta",
    {"labels": ("labels", "label_names")},
)
CIFAR100 = Archive(
    "cifar100",
    {"train": ("cifar-100-python/train",), "test": ("cifar-100-python/test",)},
    "cifar-100-python/meta",
    {"fine": ("fine_labels", "fine_label_names"), "coarse": ("coarse_labels", "coarse_label_names")},
)


class Split(NamedTuple):
    """Images as uint8 (n, 3072), planes of red, green and blue, with their labels."""

    pixels: Any
    labels: list[int]


class Cifar:
    """CIFAR as a source of 32 x 32 lossless PNG images: JPEG artefacts matter at this size."""

    splits: Sequence[str] = ("train", "test")

    def __init__(self, archive: Archive, file: Path, kind: str, labels: str, verify: bool) -> None:  # noqa: FBT001
        self.archive, self.file, self.kind, self.verify = archive, file, kind, verify
        self.dataset = catalogue.known_datasets()[archive.name]
        self.templates: Sequence[str] = self.dataset.templates
        self.labels_at, self.names_at = archive.labels[labels]
        self.notes: list[str] = [] if verify else [f"{file}: md5 not checked (verify=false)"]

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """The official names, with spaces instead of underscores, as in CLIP's list."""
        if self.kind != "labels":
            return ()
        self._check_md5()
        meta = self._read_members({self.archive.meta})[self.archive.meta]
        names = meta.get(self.names_at)
        if not isinstance(names, list):
            raise self._layout_error(f"{self.archive.meta} has no {self.names_at}")
        if len(names) > MAX_CLASSES:
            raise self._layout_error(f"{self.names_at} has {len(names):,} names")
        if not all(isinstance(name, str | bytes) and len(name) <= MAX_NAME and name.strip() for name in names):
            raise self._layout_error(f"{self.names_at} is not a list of names of 1 to {MAX_NAME:,} letters")
        texts = [name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names]
        return tuple(ClassName(text, (text.replace("_", " "),)) for text in texts)

    def rows(self, split: str) -> list[Row]:
        """Return the rows in the order of the archive; ``ref`` is ``split/number``."""
        self._check_md5()
        labels = self._data[split].labels if self.kind == "labels" else [NO_LABEL] * len(self._data[split].labels)
        if self.kind == "labels" and not all(0 <= label < len(self.classes) for label in labels):
            raise self._layout_error(
                f"{self.labels_at} has numbers of no class (number of classes: {len(self.classes)})"
            )
        return [Row(at := f"{split}/{number:05d}", at, (), label) for number, label in enumerate(labels)]

    def read(self, row: Row) -> dict[str, bytes]:
        """Return the image as PNG."""
        split, _, number = row.ref.partition("/")
        planes = self._data[split].pixels[int(number)].reshape(3, SIDE, SIDE)
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(out, "PNG")
        return {"image": out.getvalue()}

    @cached_property
    def _data(self) -> dict[str, Split]:
        members = {member for of in self.archive.members.values() for member in of}
        batches = self._read_members(members)
        return {split: self._join_batches([batches[name] for name in of]) for split, of in self.archive.members.items()}

    def _join_batches(self, batches: list[dict[str, Any]]) -> Split:
        labels: list[int] = []
        for batch in batches:
            pixels, of = batch.get("data"), batch.get(self.labels_at)
            if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PLANES,):
                raise self._layout_error(f"data is not a uint8 array of shape (n, {PLANES})")
            if not isinstance(of, list) or len(of) != len(pixels) or not all(type(label) is int for label in of):
                raise self._layout_error(f"{self.labels_at} is not a list of {len(pixels)} integers")
            labels += of
        return Split(np.concatenate([batch["data"] for batch in batches]), labels)

    def _check_md5(self) -> None:
        """Compare the md5 once; workers do not repeat it."""
        if self.verify:
            check_md5(self.file, self.dataset.files[0].md5, f"{self.archive.name}?verify=false")
        self.verify = False

    def _read_members(self, names: set[str]) -> dict[str, dict[str, Any]]:
        """Read these members of the archive without unpacking it to disk. UniclError for any other layout."""
        found: dict[str, dict[str, Any]] = {}
        try:
            with gzip.open(self.file) as content:
                for member in iter_members(cast("IO[bytes]", content), 0, UNPACKED):
                    name = member.name.removeprefix("./")
                    if name in names - set(found) and member.isreg():
                        if member.size > LARGEST:
                            raise tarfile.ReadError(f"{name} has {member.size:,} bytes")
                        content.seek(member.offset_data)
                        found[name] = load_plain(content.read(member.size))
                        if len(found) == len(names):
                            break
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UniclError(f"{self.file}: incomplete or not a .tar.gz: {error}", "download it again") from error
        except pickle.UnpicklingError as error:
            raise UniclError(f"{self.file}: refused: {error}", "download the official archive") from error
        if missing := names - set(found):
            raise self._layout_error(f"{min(missing)} is missing")
        return found

    def _layout_error(self, what: str) -> UniclError:
        official = self.dataset.files[0].name
        return UniclError(f"{self.file}: not the official {official}: {what}", "download it again")


def cifar10(*, kind: str, path: str | None = None, verify: bool = True) -> Cifar:
    """CIFAR-10 from `cifar-10-python.tar.gz` in `--data-dir` or at ``path``; ``verify=false`` skips its md5."""
    return _open_archive(CIFAR10, kind, path, "labels", verify)


def cifar100(
    *, kind: str, path: str | None = None, verify: bool = True, labels: Literal["fine", "coarse"] = "fine"
) -> Cifar:
    """CIFAR-100 from `cifar-100-python.tar.gz` in `--data-dir` or at ``path``: 100 fine or 20 coarse classes."""
    return _open_archive(CIFAR100, kind, path, labels, verify)


def _open_archive(archive: Archive, kind: str, path: str | None, labels: str, verify: bool) -> Cifar:  # noqa: FBT001
    dataset = catalogue.known_datasets()[archive.name]
    file, tried = find_file(dataset.files[0].name, archive.name, path)
    if file is None:
        raise catalogue.missing_error(dataset, tried=tried)
    return Cifar(archive, file, kind, labels, verify)
