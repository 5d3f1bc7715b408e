"""A prepared corpus on disk: its manifest, and tables of its rows for training and evaluation."""

import hashlib
import json
import shlex
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unicl_cli.contracts import ClassName, Sample
from unicl_cli.errors import UniclError, did_you_mean

MANIFEST = "manifest.json"
PLAN = "plan.json"
SCHEMA_VERSION = 1
EVAL_SPLITS = ("test", "val")
"""Splits that evaluation uses by default, the first that a corpus has."""
CACHE_BYTES = 512_000_000
"""Decoded row groups kept by a process for each table: a window of 64 groups of 8 MB."""
_COLUMNS = ["image", "texts", "label", "source", "key", "text_hash"]


class _Group(NamedTuple):
    """A decoded row group: images stay in Arrow's memory until one is asked for."""

    images: pa.Array
    texts: list[list[str]]
    labels: list[int]
    sources: list[str]
    keys: list[str]
    hashes: list[list[int]]
    size: int


class Table:
    """Rows of one split and kind, numbered through its shards; opens files when first read, in each process anew."""

    def __init__(self, shards: Sequence[Path], row_groups: Sequence[Sequence[int]]) -> None:
        self.shards = tuple(shards)
        self._row_groups = tuple(tuple(groups) for groups in row_groups)
        self._start()

    def _start(self) -> None:
        sizes = [size for groups in self._row_groups for size in groups]
        self.group_sizes: NDArray[np.int64] = np.array(sizes, np.int64)
        self._ends = np.cumsum(self.group_sizes)
        self._places = [(shard, group) for shard, of in enumerate(self._row_groups) for group in range(len(of))]
        self._files: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, _Group] = OrderedDict()
        self._cached = 0

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "_row_groups": self._row_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def shard_of(self, row: int) -> Path:
        """The file that holds a row."""
        return self.shards[self._places[int(np.searchsorted(self._ends, row, side="right"))][0]]

    def read(self, row: int) -> Sample:
        """One row; IndexError outside [0, len)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside a table of {len(self)}")
        number = int(np.searchsorted(self._ends, row, side="right"))
        at = row - int(self._ends[number] - self.group_sizes[number])
        group = self._group(number)
        return Sample(
            group.images[at].as_py(),
            tuple(group.texts[at]),
            group.labels[at],
            group.sources[at],
            group.keys[at],
            tuple(group.hashes[at]),
        )

    def column(self, name: str) -> pa.ChunkedArray:  # pyright: ignore[reportUnknownParameterType] - no stubs
        """One whole column ("label", "key", "texts", …) in row order; nothing else is read."""
        return pa.concat_tables([_column(shard, name) for shard in self.shards]).column(name)

    def _group(self, number: int) -> _Group:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        group = self._decoded(number)
        self._cache[number] = group
        self._cached += group.size
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].size
        return group

    def _decoded(self, number: int) -> _Group:
        shard, group = self._places[number]
        if shard not in self._files:
            self._files[shard] = _opened(self.shards[shard])
        try:
            table = self._files[shard].read_row_group(group, columns=_COLUMNS, use_threads=False).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.shards[shard], error) from error
        lists = [table.column(name).to_pylist() for name in _COLUMNS[1:]]
        images = table.column("image").chunk(0).field("bytes")
        return _Group(images, *lists, size=table.nbytes)


def _opened(shard: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(shard, memory_map=True, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from error


def _column(shard: Path, name: str) -> pa.Table:  # pyright: ignore[reportUnknownParameterType] - no stubs
    try:
        return pq.read_table(shard, columns=[name], memory_map=True, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from error


def _damaged(shard: Path, error: Exception) -> UniclError:
    """For a shard ``CORPUS/data/SPLIT/NAME.parquet`` whose pages or footer cannot be read."""
    line = " ".join(str(error).split())
    return UniclError(f"{shard}: damaged: {line}", mending(shard.parent.parent.parent))


def mending(folder: Path) -> str:
    """What to do about damaged shards."""
    return f"unicl prepare --repair -o {shlex.quote(str(folder))} makes the damaged shards again"


class Corpus:
    """An opened manifest; see ``open_corpus``."""

    def __init__(self, path: Path, manifest: dict[str, Any], checksum: str) -> None:
        self.path, self.manifest, self.checksum = path, manifest, checksum
        self.name: str = manifest["name"]
        self.classes = tuple(ClassName(c["key"], tuple(c["names"])) for c in manifest["classes"])
        templates = manifest["templates"]
        self.templates: tuple[str, ...] | str = templates if isinstance(templates, str) else tuple(templates)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Splits that hold rows: train, val, test, then others by name."""
        met = {shard["split"] for shard in self.manifest["shards"]}
        usual = [split for split in ("train", "val", "test") if split in met]
        return (*usual, *sorted(met - set(usual)))

    def eval_split(self, asked: str | None = None) -> str:
        """Return the split to evaluate on: the one asked for, else test, else val. UniclError if there is none."""
        have = ", ".join(self.splits)
        if asked is not None and asked not in self.splits:
            message = f"corpus {self.path} has no split '{asked}'{did_you_mean(asked, self.splits)}"
            raise UniclError(message, f"name one of its splits: {have}")
        found = asked or next((split for split in EVAL_SPLITS if split in self.splits), None)
        if found is None:
            raise UniclError(
                f"corpus {self.path} has neither a test nor a val split",
                f"name one with --split (it has {have}), or prepare the corpus with --holdout 0.05",
            )
        return found

    def kinds(self, split: str) -> tuple[str, ...]:
        """Kinds of the split's shards: of labels, captions, images."""
        met = {shard["kind"] for shard in self.manifest["shards"] if shard["split"] == split}
        return tuple(kind for kind in ("labels", "captions", "images") if kind in met)

    def table(self, split: str, kind: str) -> Table:
        """All rows of a split and kind, in the order of the manifest. UniclError if there are none."""
        shards = [s for s in self.manifest["shards"] if s["split"] == split and s["kind"] == kind]
        if not shards:
            have = ", ".join(f"{s} ({' + '.join(self.kinds(s))})" for s in self.splits)
            raise UniclError(f"{self.path}: no rows of kind '{kind}' in split '{split}'", f"it has {have}")
        return Table([self.path / s["file"] for s in shards], [s["row_groups"] for s in shards])


def open_corpus(path: str | Path) -> Corpus:
    """The corpus in a directory. UniclError if it is missing or unfinished, or if a shard has another size."""
    folder = Path(path)
    file = folder / MANIFEST
    if not file.is_file():
        if (folder / PLAN).is_file():
            raise UniclError(f"{folder}: this corpus is unfinished", "run the same `unicl prepare` command again")
        raise UniclError(f"{folder}: no corpus here", f"make one: unicl prepare --labels SRC -o {folder}")
    data = file.read_bytes()
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise UniclError(f"{file}: damaged: {error}", mending(folder)) from error
    if not isinstance(manifest, dict):
        raise UniclError(f"{file}: damaged: holds no object", mending(folder))
    manifest = cast("dict[str, Any]", manifest)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise UniclError(
            f"{file}: corpus format {manifest.get('schema_version')}, this unicl reads {SCHEMA_VERSION}",
            "prepare it again with this version",
        )
    for shard in manifest["shards"]:
        if problem := damage(folder, shard):
            raise UniclError(problem, mending(folder))
    return Corpus(folder, manifest, hashlib.sha256(data).hexdigest())


def damage(folder: Path, shard: Mapping[str, Any]) -> str | None:
    """What is wrong with a shard that a marker or manifest describes, by its size; None if nothing is."""
    file = folder / shard["file"]
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return f"{file}: shard is missing"
    return None if size == shard["bytes"] else f"{file}: shard has {size} bytes instead of {shard['bytes']}"
