"""Reader of a prepared corpus: its manifest, and tables of its rows for training and evaluation."""

import os
import shlex
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unicl_cli.contracts import ALL_GROUPS, NO_LABEL, ClassName, Sample
from unicl_cli.core.class_groups import label_sets_of
from unicl_cli.data.corpus_format import KNOWN, LABELS, MEDIA, MEDIA_KINDS
from unicl_cli.data.manifest import Manifest, Shard, read_manifest, repair_hint, splits_of
from unicl_cli.data.pictures import ImageError
from unicl_cli.data.shard_checks import ShardRules, explain_damage, open_shard, read_columns, read_group, reopen_shard
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.evaluator_contracts import RowSets
from unicl_cli.storage.remote import RemotePath, place_of

EVAL_SPLITS = ("test", "val")
"""Splits that evaluation uses by default, the first that a corpus has."""
READERS = 16
"""The most row groups that a process reads at the same time from another file system."""
CACHE_BYTES = 512_000_000
"""Size of the row groups that a process keeps for each table: a window of 64 groups of 8 MB."""
_COLUMNS = ["texts", "label", "source", "key", "text_hash"]


class _Group(NamedTuple):
    """A decoded row group: images and media stay in Arrow's memory until one is asked for."""

    images: pa.Array | None
    texts: list[list[str]]
    labels: list[int]
    sources: list[str]
    keys: list[str]
    hashes: list[list[int]]
    sets: list[list[int]] | None
    known: list[int] | None
    media: pa.Array | None
    size: int


class RowTable:
    """Rows of one split and kind, numbered through its shards; each process opens the files at its first read."""

    def __init__(self, shards: Sequence[Path], row_groups: Sequence[Sequence[int]], rules: ShardRules) -> None:
        self.shards = tuple(shards)
        self.rules = rules
        self._row_groups = tuple(tuple(groups) for groups in row_groups)
        self._start()

    def _start(self) -> None:
        sizes = [size for groups in self._row_groups for size in groups]
        self.group_sizes: NDArray[np.int64] = np.array(sizes, np.int64)
        self._ends = np.cumsum(self.group_sizes)
        self._first_groups = np.cumsum([0, *map(len, self._row_groups)])
        self._files: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[tuple[int, bool, bool], _Group] = OrderedDict()
        self._cached = 0

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "rules": self.rules, "_row_groups": self._row_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _place(self, number: int) -> tuple[int, int]:
        """Return the shard of a row group, and its number there: computed, since a table may have a million groups."""
        shard = int(np.searchsorted(self._first_groups, number, side="right")) - 1
        return shard, number - int(self._first_groups[shard])

    def shard_of(self, row: int) -> Path:
        """Return the file that holds a row."""
        return self.shards[self._place(int(np.searchsorted(self._ends, row, side="right")))[0]]

    def read(self, row: int, *, media: bool = False, image: bool = True) -> Sample:
        """Return one row; IndexError outside [0, len).

        Without ``media`` or ``image``, that column is not read from the disk, and the sample's own is empty.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside a table of {len(self)}")
        number = int(np.searchsorted(self._ends, row, side="right"))
        at = row - int(self._ends[number] - self.group_sizes[number])
        group = self._cached_group(number, media=media, image=image)
        return Sample(
            b"" if group.images is None else group.images[at].as_py(),
            tuple(group.texts[at]),
            group.labels[at],
            group.sources[at],
            group.keys[at],
            tuple(group.hashes[at]),
            {} if group.media is None else {item["kind"]: item["bytes"] for item in group.media[at].as_py()},
            _only(group.labels[at]) if group.sets is None else tuple(group.sets[at]),
            ALL_GROUPS if group.known is None else group.known[at],
        )

    @property
    def has_sets(self) -> bool:
        """True if rows may have several labels, or lack annotations for a group of classes."""
        return self.rules.groups is not None

    def label_sets(self) -> RowSets:
        """Return the labels of all rows; a row of a corpus without sets has one or none."""
        if not self.has_sets:
            return sets_of_labels(integers_of(self.column("label")))
        return sets_of_lists(self.column(LABELS), self.column(KNOWN))

    @property
    def stores_media(self) -> bool:
        """True if rows may have media."""
        return MEDIA in self._file(0).schema_arrow.names

    def media_rows(self, kind: str) -> NDArray[np.bool_]:
        """Return whether each row has media of this kind, bool (rows,); the media themselves are not read."""
        return np.concatenate([np.empty(0, np.bool_), *(self._media_rows(n, kind) for n in range(len(self.shards)))])

    def has_media(self, kind: str) -> bool:
        """Return whether any row has media of this kind; reads shards up to the first such row."""
        return any(self._media_rows(number, kind).any() for number in range(len(self.shards)))

    def _media_rows(self, shard: int, kind: str) -> NDArray[np.bool_]:
        if MEDIA not in self._file(shard).schema_arrow.names:
            return np.zeros(sum(self._row_groups[shard]), np.bool_)
        column = read_columns(self.shards[shard], self._row_groups[shard], [MEDIA_KINDS], self.rules).column(MEDIA)
        found = [any(item["kind"] == kind for item in items) for items in column.to_pylist()]
        return np.array(found, np.bool_)

    def media_bytes(self) -> float:
        """Return the mean bytes of media in a row, from the footer of the first shard; 0 without media."""
        metadata = self._file(0).metadata
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        columns = (group.column(number) for group in groups for number in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == MEDIA)
        return size / max(1, metadata.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:  # pyright: ignore[reportUnknownParameterType] - no stubs
        """Return one whole column ("label", "key", "texts", …) in row order, without reading the others."""
        return pa.concat_tables([self._read_column(number, name) for number in range(len(self.shards))]).column(name)

    def has_texts(self, rows: NDArray[np.int64] | None = None, *, lacking: bool = False) -> bool:
        """Return whether one of ``rows`` (None: all) has texts, or is ``lacking`` them; reads shards until one does."""
        first = 0
        for number in range(len(self.shards)):
            for chunk in self._read_column(number, "texts").column("texts").chunks:
                found = (np.diff(np.from_dlpack(chunk.offsets)) > 0) != lacking
                end = first + len(found)
                if (found if rows is None else found[rows[(rows >= first) & (rows < end)] - first]).any():
                    return True
                first = end
        return False

    def image_hashes(self) -> Iterator[NDArray[np.uint64]]:
        """Yield the first 64 bits of the sha256 of each row's image, shard by shard, in row order."""
        for number in range(len(self.shards)):
            for digests in self._read_column(number, "sha256").column("sha256").chunks:
                whole = np.frombuffer(digests.buffers()[1], np.uint64)
                yield whole.reshape(-1, 4)[digests.offset : digests.offset + len(digests), 0].copy()

    def prefetch(self, rows: Sequence[int], *, media: bool = False, image: bool = True) -> None:
        """Read the row groups of ``rows`` at the same time, if they are on another file system, where each read waits.

        At most half of the cache is filled; what does not fit is read when its row is.
        """
        if not isinstance(self.shards[0], RemotePath):
            return
        numbers = dict.fromkeys(np.searchsorted(self._ends, rows, side="right").tolist())
        missing = [number for number in numbers if (number, media, image) not in self._cache]
        groups = list(takewhile_fits(missing, self._group_bytes, CACHE_BYTES // 2))
        if len(groups) < 2:
            return
        with ThreadPoolExecutor(min(READERS, len(groups))) as pool:
            read = partial(self._read_group, media=media, image=image)
            for number, group in zip(groups, pool.map(read, groups), strict=True):
                self._keep_group((number, media, image), group)

    def _group_bytes(self, number: int) -> int:
        shard, group = self._place(number)
        return self._file(shard).metadata.row_group(group).total_byte_size

    def _cached_group(self, number: int, *, media: bool, image: bool) -> _Group:
        key = (number, media, image)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        group = self._read_group(number, media=media, image=image)
        self._keep_group(key, group)
        return group

    def _keep_group(self, key: tuple[int, bool, bool], group: _Group) -> None:
        self._cache[key] = group
        self._cached += group.size
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].size

    def _read_group(self, number: int, *, media: bool, image: bool) -> _Group:
        shard, group = self._place(number)
        file = reopen_shard(self._file(shard), self.shards[shard])
        with_media = media and MEDIA in file.schema_arrow.names
        sets_columns = [LABELS, KNOWN] if self.has_sets else []
        columns = [*(["image"] if image else []), *_COLUMNS, *sets_columns, *([MEDIA] if with_media else [])]
        table = read_group(file, self.shards[shard], group, columns, self.rules)
        try:
            lists = [_to_list(table.column(name).chunk(0)) for name in _COLUMNS]
            sets = [_to_list(table.column(name).chunk(0)) if self.has_sets else None for name in (LABELS, KNOWN)]
        except ValueError as error:  # not UTF-8
            raise explain_damage(self.shards[shard], f"row group {group}: {error}") from error
        images = table.column("image").chunk(0).field("bytes") if image else None
        items = table.column(MEDIA).chunk(0) if with_media else None
        return _Group(images, *lists, *sets, media=items, size=table.nbytes)

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._files:
            self._files[shard] = open_shard(self.shards[shard], self._row_groups[shard])
        return self._files[shard]

    def _read_column(self, shard: int, name: str) -> pa.Table:  # pyright: ignore[reportUnknownParameterType] - no stubs
        columns = ["label", LABELS, KNOWN] if name in (LABELS, KNOWN) else [name]  # a set is checked as a whole
        return read_columns(self.shards[shard], self._row_groups[shard], columns, self.rules).select([name])


def takewhile_fits(numbers: Iterable[int], size: Callable[[int], int], most: int) -> Iterator[int]:
    """Yield the first of ``numbers`` whose sizes together are at most ``most``."""
    for number in numbers:
        most -= size(number)
        if most < 0:
            return
        yield number


def integers_of(column: pa.ChunkedArray) -> NDArray[np.int64]:  # pyright: ignore[reportUnknownParameterType] - no stubs
    """Return a column of integers without nulls, int64 (rows,), without importing pandas as pyarrow's own way does."""
    return np.concatenate([np.empty(0, np.int64), *map(np.from_dlpack, column.chunks)], dtype=np.int64)


def sets_of_labels(labels: NDArray[np.int64]) -> RowSets:
    """Return the label sets of rows with one label or NO_LABEL each, int64 (rows,)."""
    has = labels != NO_LABEL
    return RowSets(np.concatenate([[0], has.cumsum()]), labels[has], np.full(len(labels), ALL_GROUPS))


def sets_of_lists(lists: Any, known: Any) -> RowSets:
    """Return the label sets of rows from the columns of a corpus that has them."""
    counts = np.concatenate([np.empty(0, np.int64), *(np.diff(np.from_dlpack(c.offsets)) for c in lists.chunks)])
    values = np.concatenate([np.empty(0, np.int64), *(np.from_dlpack(c.flatten()) for c in lists.chunks)])
    return RowSets(np.concatenate([[0], counts.cumsum()]), values.astype(np.int64), integers_of(known))


def _only(label: int) -> tuple[int, ...]:
    return () if label == NO_LABEL else (label,)


def _to_list(column: Any) -> list[Any]:
    """Return the values of an array; rows of labels mostly have no texts, and one empty list serves them all."""
    if isinstance(column, pa.ListArray) and not len(column.values):
        return [[]] * len(column)
    return column.to_pylist()


class Corpus:
    """An open corpus: its manifest and what it describes; see ``open_corpus``."""

    def __init__(self, path: Path, manifest: Manifest, checksum: str) -> None:
        self.path, self.manifest, self.checksum = path, manifest, checksum
        self.name = manifest.title
        self.classes = tuple(ClassName(c.key, tuple(c.names), c.group, c.parent) for c in manifest.classes)
        self.groups = label_sets_of(self.classes, manifest.most_labels).groups if manifest.has_sets else None
        templates = manifest.templates
        self.templates: tuple[str, ...] | str = templates if isinstance(templates, str) else tuple(templates)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rows: train, val, test, then the others by name."""
        return splits_of(self.manifest.shards)

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
        """Return the kinds of rows in a split, in the order labels, captions, images."""
        met = {shard.kind for shard in self.manifest.shards if shard.split == split}
        return tuple(kind for kind in ("labels", "captions", "images") if kind in met)

    def table(self, split: str, kind: str) -> RowTable:
        """Return all rows of a split and kind, in the order of the manifest. UniclError if there are none."""
        shards = [shard for shard in self.manifest.shards if shard.split == split and shard.kind == kind]
        if not shards:
            have = ", ".join(f"{s} ({' + '.join(self.kinds(s))})" for s in self.splits)
            raise UniclError(f"{self.path}: no rows of kind '{kind}' in split '{split}'", f"choose one of {have}")
        rules = ShardRules(kind, len(self.classes), self.groups)
        return RowTable([self.path / shard.file for shard in shards], [shard.row_groups for shard in shards], rules)


def open_corpus(path: str | Path) -> Corpus:
    """Open the corpus in a directory. UniclError if it is missing or unfinished, or if a shard has another size."""
    folder = place_of(path)
    manifest, checksum = read_manifest(folder)
    sizes = folder.list_sizes() if isinstance(folder, RemotePath) else None  # one request for all shards
    for shard in manifest.shards:
        if sizes is None:
            problem = find_damage(folder, shard.file, shard.bytes)
        else:
            problem = _find_remote_damage(folder, sizes, shard)
        if problem:
            raise UniclError(problem, repair_hint(folder))
    return Corpus(folder, manifest, checksum)


def _find_remote_damage(folder: Path, sizes: Mapping[str, int], shard: Shard) -> str | None:
    """Return what is wrong with a shard, judged by the listing of its folder; None if sound, or without a listing."""
    if not sizes:
        return None
    size = sizes.get(shard.file)
    if size is None:
        return f"{folder}/{shard.file}: shard is missing"
    return None if size == shard.bytes else f"{folder}/{shard.file}: shard has {size} bytes instead of {shard.bytes}"


def _find_size(shard: RemotePath, size: int) -> str | None:
    """Return what is wrong with a shard of another file system that should have ``size`` bytes; None if sound."""
    try:
        found = shard.read_size()
    except FileNotFoundError:
        return f"{shard}: shard is missing"
    except OSError as error:
        return f"{shard}: shard cannot be read: {error.strerror or error}"
    return None if found == size else f"{shard}: shard has {found} bytes instead of {size}"


def undecodable(where: Path | str, key: str, error: ImageError) -> UniclError:
    """Return the error for an image of a corpus that cannot be decoded, although `prepare` has decoded it once.

    ``where`` is its shard, or the words for rows that are in none.
    """
    corpus = shlex.quote(str(where.parent.parent.parent)) if isinstance(where, Path) else "CORPUS"
    if error.reason == "out_of_memory":
        hint = "free some memory, or prepare the corpus again with --size 512: it stores large images smaller"
    else:
        hint = (
            f"check the corpus with unicl prepare --verify -o {corpus}; if it was made on another machine, prepare it "
            "again on this one, whose Pillow may read other formats"
        )
    return UniclError(f"{where}: the image of row '{key}' cannot be used: {error}", hint)


def find_damage(folder: Path, name: str, size: int) -> str | None:
    """Return what is wrong with the shard ``name`` that should have ``size`` bytes, judged by both; None if sound."""
    file = f"{folder}/{name}"
    if isinstance(folder, RemotePath):
        return _find_size(folder / name, size)
    try:
        found = os.stat(file)  # noqa: PTH116 - a Path for each of 100,000 shards takes as long as all the rest
    except FileNotFoundError:
        return f"{file}: shard is missing"
    except OSError as error:
        return f"{file}: shard cannot be read: {error.strerror or error}"
    if not stat.S_ISREG(found.st_mode):
        return f"{file}: shard is not a regular file"
    return None if found.st_size == size else f"{file}: shard has {found.st_size} bytes instead of {size}"
