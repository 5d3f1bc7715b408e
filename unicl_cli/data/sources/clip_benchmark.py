"""Evaluation sets in the layout of CLIP_benchmark's exports: numbered tars of each split beside names and templates."""

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.pictures import Extent, read_extent
from unicl_cli.data.sources.catalogue import has_shards
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.data.sources.splits import split_of
from unicl_cli.data.sources.tar_members import iter_members
from unicl_cli.data.wordnet import names_of_synset, synsets
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import read_regular

COUNT, NAMES, TEMPLATES, TYPE = (
    "nshards.txt",
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
)
IMAGES = (".webp", ".png", ".jpg", ".jpeg")
LABEL, CAPTIONS = ".cls", ".txt"
MAX_TEXT = 1_000_000
"""Maximum number of bytes of a text file, and of a caption or label."""
RETRIEVAL, CLASSIFICATION = "retrieval", "classification"


class TarSample(NamedTuple):
    """The members of a sample by their endings, each with its place and size in the tar."""

    key: str
    members: dict[str, tuple[int, int]]


class ClipBenchmark:
    """An exported set as a source; a row's ``ref`` is ``split/number.tar@offset+size``."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.notes: list[str] = []
        type_file = folder / TYPE
        self.type = self._lines(TYPE)[0].strip() if type_file.is_file() else CLASSIFICATION
        wanted = {"labels": CLASSIFICATION, "captions": RETRIEVAL}.get(kind, self.type)
        if self.type not in (RETRIEVAL, CLASSIFICATION) or wanted != self.type:
            takes = {RETRIEVAL: "--captions", CLASSIFICATION: "--labels"}.get(self.type, "--images")
            raise UniclError(f"{folder}: {TYPE} says {self.type}, which --{kind} cannot read", f"use it with {takes}")

    @cached_property
    def splits(self) -> Sequence[str]:
        """The splits that have shards; `val` for a folder with another of its names."""
        return list(self._folders)

    @cached_property
    def _folders(self) -> Mapping[str, Path]:
        found = {place.name: place for place in sorted(self.folder.iterdir()) if (place / COUNT).is_file()}
        return {split_of(name) or name: place for name, place in found.items()}

    @cached_property
    def templates(self) -> tuple[str, ...] | str:
        if not (self.folder / TEMPLATES).is_file():
            return "clip80"
        return tuple(line for line in self._lines(TEMPLATES) if line.strip())

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """The names in their order, which is that of the labels; the keys of ImageNet's 1,000 are their synsets.

        Names that a list has twice get the number of the class in their key, so that both stay classes.
        """
        if self.kind != "labels":
            return ()
        names = [line.strip() for line in self._lines(NAMES)]
        while names and not names[-1]:
            names.pop()
        if not all(names):
            raise UniclError(f"{self.folder / NAMES}: line {names.index('') + 1} is empty", "write a name per line")
        if _is_imagenet(names):
            return tuple(ClassName(key, (name,)) for key, name in zip(synsets(), names, strict=True))
        twice = {name for name in names if names.count(name) > 1}
        return tuple(
            ClassName(f"{name} #{number}" if name in twice else name, (name,)) for number, name in enumerate(names)
        )

    def rows(self, split: str) -> Sequence[Row]:
        """Return the rows in the order of the tars. UniclError for a missing shard, or a label without a name."""
        folder = self._folders[split]
        rows = spool_rows()
        for number in range(self._count(folder)):
            shard = folder / f"{number}.tar"
            if not shard.is_file():
                raise UniclError(
                    f"{shard}: missing: {folder / COUNT} says {self._count(folder)} shards", "download it again"
                )
            rows.extend(self._row(split, shard, sample) for sample in _read_samples(shard))
        return rows

    def read(self, row: Row) -> dict[str, bytes]:
        return {"image": read_extent(self.extent(row))}

    def extent(self, row: Row) -> Extent:
        """Return the place of the image in its tar."""
        shard, _, place = row.ref.rpartition("@")
        split, _, name = shard.partition("/")
        offset, _, size = place.partition("+")
        return Extent(str(self._folders[split] / name), int(offset), int(size))

    def _row(self, split: str, shard: Path, sample: TarSample) -> Row:
        image = next((sample.members[ending] for ending in IMAGES if ending in sample.members), None)
        if image is None:
            raise UniclError(f"{shard}: {sample.key} has no image ({', '.join(IMAGES)})", "export the set again")
        ref = f"{split}/{shard.name}@{image[0]}+{image[1]}"
        texts = self._text(shard, sample, CAPTIONS).splitlines() if self.kind == "captions" else []
        label = self._label(shard, sample) if self.kind == "labels" else NO_LABEL
        return Row(f"{split}/{shard.stem}/{sample.key}", ref, tuple(text for text in texts if text.strip()), label)

    def _label(self, shard: Path, sample: TarSample) -> int:
        text = self._text(shard, sample, LABEL).strip()
        if not text.isdecimal() or int(text) >= len(self.classes):
            raise UniclError(
                f"{shard}: label '{text[:20]}' of {sample.key} has no name: {NAMES} has {len(self.classes):,}, from 0",
                f"correct {self.folder / NAMES}, which has a line per class",
            )
        return int(text)

    def _text(self, shard: Path, sample: TarSample, ending: str) -> str:
        offset, size = sample.members.get(ending, (0, -1))
        if not 0 <= size <= MAX_TEXT:
            what = f"no {ending[1:]}" if size < 0 else f"a {ending[1:]} of {size:,} bytes"
            raise UniclError(f"{shard}: {sample.key} has {what}", "export the set again")
        return read_extent(Extent(str(shard), offset, size)).decode("utf-8", "replace")

    def _count(self, folder: Path) -> int:
        text = read_regular(folder / COUNT, MAX_TEXT).decode("utf-8", "replace").strip()
        if not text.isdecimal() or not 0 < len(text) < 7:
            raise UniclError(f"{folder / COUNT}: not a number of shards", "write one integer into it")
        return int(text)

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        try:
            return read_regular(file, MAX_TEXT).decode("utf-8-sig").splitlines() or [""]
        except (OSError, UnicodeDecodeError) as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read as UTF-8 text"
            raise UniclError(f"{file}: {what}", "download the set again, with its text files") from error


def _is_imagenet(names: Sequence[str]) -> bool:
    """Return whether the names are those of ImageNet-1K in its order: nine of ten are names of their synsets."""
    if len(names) != len(synsets()):
        return False
    known = [{name.casefold() for name in names_of_synset(key)} for key in synsets()]
    return sum(name.casefold() in of for name, of in zip(names, known, strict=True)) >= 0.9 * len(names)


def _read_samples(shard: Path) -> Iterator[TarSample]:
    """Yield the samples of a tar: neighbouring members with one name apart from what follows the first dot in it."""
    sample = TarSample("", {})
    try:
        with shard.open("rb", buffering=0) as file:
            for member in iter_members(file, 0, shard.stat().st_size):
                if not member.isreg() or member.issparse():
                    continue
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                stem, dot, ending = name.partition(".")
                key = f"{folder}{slash}{stem}"
                if key != sample.key:
                    if sample.members:
                        yield sample
                    sample = TarSample(key, {})
                sample.members[f"{dot}{ending.lower()}"] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise UniclError(f"{shard}: incomplete or not a tar: {error}", "download it again") from error
    if sample.members:
        yield sample


def clip_benchmark(*, kind: str, path: str) -> ClipBenchmark:
    """An evaluation set that CLIP_benchmark has exported: `test/0.tar` and so on, `classnames.txt`, templates.

    ``path`` is its folder.
    """
    folder = Path(path).expanduser()
    if not has_shards(folder):
        raise UniclError(f"{path}: no set of CLIP_benchmark here", "give the folder that has test/nshards.txt")
    return ClipBenchmark(folder, kind)
