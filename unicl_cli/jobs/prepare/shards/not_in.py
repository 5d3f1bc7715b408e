"""Images of other corpora that `prepare --not-in` keeps out of a corpus: their index, and the search in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unicl_cli.data.corpus import Corpus, RowTable, open_corpus
from unicl_cli.data.manifest import NotIn
from unicl_cli.data.near_images import (
    SIMILAR,
    THUMB_BYTES,
    HashIndex,
    are_flat,
    as_hash,
    compare_thumbs,
    make_thumbnail,
)
from unicl_cli.data.pictures import Examined, ImageError, decode
from unicl_cli.data.sources.resolve import split_options
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.jobs.prepare.shards.download import map_ahead
from unicl_cli.jobs.prepare.shards.progress import Progress
from unicl_cli.storage.files import open_copy, replace_durably, temporary_beside
from unicl_cli.storage.remote import place_of

FILE = "not_in.arrow"
"""The index, beside `plan.json` while shards are written."""
SAME, NEAR = "same", "near"
_BATCH = 4096
_THREADS = 4
_PLANNED = b"planned"
_SCHEMA = pa.schema(
    [
        ("corpus", pa.int32()),
        ("row", pa.string()),
        ("image", pa.uint64()),
        ("hash", pa.uint64()),
        ("thumb", pa.binary(THUMB_BYTES)),
        ("usable", pa.uint8()),
    ]
)
"""A row for each image of the corpora; ``image`` is the beginning of its sha256, ``usable`` 0 if it shows nothing."""


class OtherCorpus(NamedTuple):
    """A corpus of `--not-in`, or one split of it."""

    src: str
    corpus: Corpus
    split: str | None

    def record(self) -> dict[str, Any]:
        """Return what `plan.json` says of it: a corpus that has moved stays the same."""
        return {"name": self.corpus.name, "src": self.src, "split": self.split, "checksum": self.corpus.checksum}

    def tables(self) -> Iterator[tuple[str, RowTable]]:
        """Yield its splits with their rows of each kind."""
        for split in self.corpus.splits if self.split is None else [self.split]:
            for kind in self.corpus.kinds(split):
                yield split, self.corpus.table(split, kind)


def open_others(sources: Sequence[str], out: Path | None, option: str = "--not-in") -> tuple[OtherCorpus, ...]:
    """Open the corpora of an option, each ``CORPUS`` or ``CORPUS?split=NAME``. UniclError if one cannot be used.

    ``out`` is the corpus that they are compared with.
    """
    return tuple(_open_other(src, out, option) for src in dict.fromkeys(sources))


def _open_other(src: str, out: Path | None, option: str) -> OtherCorpus:
    path, options = split_options(src)
    if unknown := options.keys() - {"split"}:
        raise UniclError(f"{option} {src}: unknown option '{min(unknown)}'", "use CORPUS or CORPUS?split=NAME")
    folder = place_of(path).expanduser()
    if out is not None and folder.resolve() == out.resolve():
        raise UniclError(f"{option} {src}: is the same corpus", "name another corpus, such as a test set")
    corpus = open_corpus(folder)
    split = options.get("split")
    if split is not None and split not in corpus.splits:
        raise UniclError(
            f"{option} {src}: has no split '{split}'{did_you_mean(split, corpus.splits)}",
            f"use {', '.join(corpus.splits)}",
        )
    return OtherCorpus(src, corpus, split)


def write_index(others: Sequence[OtherCorpus], out: Path) -> None:
    """Decode every image of the corpora once and write FILE, unless an earlier command wrote it for the same ones."""
    open_index.cache_clear()
    planned = repr([(other.split, other.corpus.checksum) for other in others]).encode()
    if _is_written(out / FILE, planned):
        return
    total = sum(len(table) for other in others for _, table in other.tables())
    schema = _SCHEMA.with_metadata({_PLANNED: planned})
    with temporary_beside(out / FILE) as part:
        with (
            pa.OSFile(str(part), "wb") as file,
            pa.ipc.new_file(file, schema) as writer,
            Progress("read --not-in", done=0, total=total, shards_done=0, shards=0) as progress,
        ):
            for number, other in enumerate(others):
                for split, table in other.tables():
                    for batch in _read_batches(number, f"{other.corpus.name}, {split}", table):
                        writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                        progress.tick(len(batch), 0, {})
        replace_durably(part, out / FILE)


def remove_index(out: Path) -> None:
    (out / FILE).unlink(missing_ok=True)


def _is_written(file: Path, planned: bytes) -> bool:
    try:
        with open_copy(file) as copy, pa.OSFile(str(copy)) as opened:
            return (pa.ipc.open_file(opened).schema.metadata or {}).get(_PLANNED) == planned
    except (OSError, pa.ArrowException):
        return False


def _read_batches(number: int, place: str, table: RowTable) -> Iterator[list[dict[str, Any]]]:
    images = np.concatenate([np.empty(0, np.uint64), *table.image_hashes()])
    hashes = table.column("phash").to_pylist()
    samples = (table.read(row) for row in range(len(table)))
    batch: list[dict[str, Any]] = []
    pairs = zip(images.tolist(), hashes, strict=True)
    for (image, hashed), (key, thumb) in zip(
        pairs,
        map_ahead(lambda s: (s.key, _read_thumb(s.image)), samples, threads=_THREADS, ahead=4 * _THREADS),
        strict=True,
    ):
        usable = hashed is not None and thumb is not None and not _is_flat(thumb)
        line = {"corpus": number, "row": f"{key} of {place}", "image": image, "hash": as_hash(hashed or 0)}
        batch.append(line | {"thumb": thumb or bytes(THUMB_BYTES), "usable": int(usable)})
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_thumb(data: bytes) -> bytes | None:
    try:
        return make_thumbnail(decode(data))
    except ImageError:
        return None  # such an image is known by its bytes alone


def _is_flat(thumb: bytes) -> bool:
    return bool(are_flat(np.frombuffer(thumb, np.uint8)[None])[0])


class Known(NamedTuple):
    """A row of a corpus of `--not-in` with the same image, or nearly the same: ``how`` is SAME or NEAR."""

    corpus: int
    how: str
    row: str


def _numbers(table: Any, name: str) -> NDArray[Any]:
    return np.concatenate([np.empty(0, np.uint8), *map(np.from_dlpack, table.column(name).chunks)])


class KnownImages:
    """The images of all corpora of `--not-in`: 100 bytes for each in memory; keys and thumbnails stay on the disk."""

    def __init__(self, out: Path) -> None:
        with open_copy(out / FILE) as copy:
            table = pa.ipc.open_file(pa.memory_map(str(copy))).read_all()
        self.rows, self.thumbs = table.column("row"), table.column("thumb")
        images, hashes = (_numbers(table, name).astype(np.uint64) for name in ("image", "hash"))
        self.corpus = _numbers(table, "corpus")
        self.by_image = np.argsort(images, kind="stable")
        self.images = images[self.by_image]
        self.places = np.flatnonzero(_numbers(table, "usable"))
        self.index = HashIndex(hashes[self.places])

    def find(self, data: bytes, image: Examined) -> list[Known]:
        """Return the first row of each corpus that has an image, or nearly the same image; ``data`` are its bytes."""
        digest = int(np.frombuffer(hashlib.sha256(data).digest(), np.uint64)[0])
        start, end = (int(np.searchsorted(self.images, np.uint64(digest), side)) for side in ("left", "right"))
        found: dict[int, Known] = {}
        for how, rows in ((SAME, self.by_image[start:end]), (NEAR, self._find_near(image))):
            for row in rows.tolist():
                number = int(self.corpus[row])
                found.setdefault(number, Known(number, how, self.rows[row].as_py()))
        return [found[number] for number in sorted(found)]

    def _find_near(self, image: Examined) -> Any:
        rows = self.places[self.index.group(np.array([as_hash(image.phash)], np.uint64))[0]]
        if not len(rows):
            return rows
        thumbs = b"".join(self.thumbs[row].as_py() for row in rows.tolist())
        others = np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB_BYTES)
        return rows[compare_thumbs(np.frombuffer(make_thumbnail(decode(image.data)), np.uint8), others) >= SIMILAR]


@lru_cache(maxsize=1)
def open_index(out: Path) -> KnownImages:
    """Return the images of `write_index`, which a process reads once: from another file system they are fetched."""
    return KnownImages(out)


def count_found(
    planned: Sequence[Mapping[str, Any]], of_units: Iterable[Mapping[str, Mapping[str, int]]]
) -> list[NotIn]:
    """Return the corpora of `--not-in` with the rows left out for them; ``of_units`` are the counts of the markers."""
    counts: Counter[tuple[int, str]] = Counter()
    for found in of_units:
        for number, of in found.items():
            counts.update({(int(number), how): count for how, count in of.items()})
    return [
        NotIn(**record, same=counts[number, SAME], near=counts[number, NEAR]) for number, record in enumerate(planned)
    ]
