"""A single pass over a corpus's Parquet shards: labels, sizes, hashes and texts, without decoding an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.class_mentions import ClassNameFinder, Words, compute, distinct_pairs, split_words
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.manifest import Shard
from unicl_cli.data.shard_checks import ShardRules, open_shard, read_columns

Ints = NDArray[np.int64]
ImageColumns = tuple[NDArray[np.int16], NDArray[np.int32], Ints]
MAX_SIDE = 1 << 16
"""Longer sides are counted as this."""
SAMPLED_TEXTS = 100_000
"""Approximate number of texts kept for the tokenizer, evenly spread over all rows."""
MERGE_EVERY = 64
"""Number of shards between two merges of the word counts."""
COLUMNS = ("label", "width", "height", "sha256")


class GroupTally:
    """Tallies over the shards of one source, kind and split."""

    def __init__(self, classes: int) -> None:
        self.rows = self.bytes = self.image_bytes = self.texts = 0
        self.labels: Ints = np.zeros(classes, np.int64)
        self.short: Ints = np.zeros(MAX_SIDE + 1, np.int64)
        self.long: Ints = np.zeros(MAX_SIDE + 1, np.int64)


class CaptionTally:
    """Tallies over the captions of the inspected split."""

    def __init__(self, classes: int, stride: int) -> None:
        self.stride, self.met = stride, 0
        self.rows = 0  # images with a caption
        self.naming = 0  # of these: a caption names a class
        self.hashes: list[Ints] = []
        self.sample: list[str] = []
        self.named: Ints = np.zeros(classes, np.int64)  # images whose captions name the class
        self.named_unlabelled: Ints = np.zeros(classes, np.int64)  # the same, of rows without a label
        self.unlabelled = 0
        self.words: list[Any] = []  # tables of (word, images)


class CorpusScan(NamedTuple):
    """The result of the pass. ``images`` holds (split number, label, first 8 bytes of the sha256) of every row."""

    groups: Mapping[tuple[str, str, str], GroupTally]  # (source, kind, split)
    texts: CaptionTally
    words: Any  # a table of (word, images), most frequent first
    images: ImageColumns


def scan_corpus(corpus: Corpus, split: str, advance: Callable[[int], None]) -> CorpusScan:
    """Read every shard of the corpus, texts of ``split`` only. ``advance`` receives the number of rows read."""
    shards = corpus.manifest.shards
    of_split = sum(shard.rows for shard in shards if shard.split == split)
    names, classes = ClassNameFinder(corpus.classes), len(corpus.classes)
    groups: dict[tuple[str, str, str], GroupTally] = {}
    texts = CaptionTally(classes, max(1, of_split // SAMPLED_TEXTS))
    images: list[ImageColumns] = []
    splits = list(corpus.splits)
    for shard in shards:
        group = groups.setdefault((shard.source, shard.kind, shard.split), GroupTally(classes))
        table, payload, count = _read(corpus.path / shard.file, shard, classes, texts=shard.split == split)
        label = append_images(table, splits.index(shard.split), images)
        group.rows, group.bytes = group.rows + len(table), group.bytes + shard.bytes
        group.image_bytes, group.texts = group.image_bytes + payload, group.texts + count
        group.labels += np.bincount(label[label != NO_LABEL], minlength=classes)
        _add_sides(group, table)
        if shard.split == split:
            _add_texts(texts, table, label, names)
        advance(len(table))
    every = [np.concatenate(column) for column in zip(*images, strict=True)]
    return CorpusScan(groups, texts, merge_word_counts(texts.words), (every[0], every[1], every[2]))


def _read(path: Path, shard: Shard, classes: int, *, texts: bool) -> tuple[Any, int, int]:
    """Return a shard's columns, and from the file's footer the bytes of its images and the number of its texts."""
    columns = [*COLUMNS, *(("texts", "text_hash") if texts else ())]
    with open_shard(path, shard.row_groups) as file:
        sizes = dict(_chunks(file.metadata))
    table = read_columns(path, shard.row_groups, columns, ShardRules(shard.kind, classes))
    return table, *_image_bytes_and_texts(sizes)


def _chunks(footer: Any) -> Iterator[tuple[tuple[int, str], Any]]:
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for at in range(group.num_columns):
            column = group.column(at)
            yield (number, column.path_in_schema), column


def _image_bytes_and_texts(chunks: Mapping[tuple[int, str], Any]) -> tuple[int, int]:
    """Return the bytes of the images, less 4 for the length before each, and the number of text hashes."""
    images = [c for (_, path), c in chunks.items() if path == "image.bytes"]
    hashes = [c for (_, path), c in chunks.items() if path.startswith("text_hash")]
    payload = sum(c.total_uncompressed_size - 4 * c.num_values for c in images)
    stated = [c.num_values - c.statistics.null_count if c.statistics else 0 for c in hashes]
    return max(0, payload), sum(stated)


def append_images(table: Any, split: int, images: list[ImageColumns]) -> Ints:
    """Append a shard's image columns to ``images``; return its labels."""
    label = table.column("label").to_numpy().astype(np.int64)
    digests = table.column("sha256").combine_chunks()
    whole = digests.chunk(0) if isinstance(digests, pa.ChunkedArray) else digests
    starts = np.frombuffer(whole.buffers()[1], np.uint8)[whole.offset * 32 : (whole.offset + len(whole)) * 32]
    prefix = starts.reshape(-1, 32)[:, :8].copy().view(np.int64)[:, 0]
    images.append((np.full(len(label), split, np.int16), label.astype(np.int32), prefix))
    return label


def _add_sides(group: GroupTally, table: Any) -> None:
    width, height = (np.minimum(table.column(name).to_numpy(), MAX_SIDE) for name in ("width", "height"))
    group.short += np.bincount(np.minimum(width, height), minlength=MAX_SIDE + 1)
    group.long += np.bincount(np.maximum(width, height), minlength=MAX_SIDE + 1)


def _add_texts(tally: CaptionTally, table: Any, label: Ints, names: ClassNameFinder) -> None:
    lists = table.column("texts").combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    flat = compute.list_flatten(lists)
    if not len(flat):
        return
    row = compute.list_parent_indices(lists).to_numpy().astype(np.int64)
    hashes = compute.list_flatten(table.column("text_hash").combine_chunks())
    tally.hashes.append(hashes.to_numpy(zero_copy_only=False).astype(np.int64))
    first = -tally.met % tally.stride
    tally.sample += flat.take(pa.array(np.arange(first, len(flat), tally.stride))).to_pylist()
    tally.met += len(flat)
    met = np.unique(row)
    tally.rows += len(met)
    tally.unlabelled += int((label[met] == NO_LABEL).sum())
    words = split_words(flat)
    text, named = names.find(words)
    named_row, named = distinct_pairs(row[text], named, names.count)
    tally.naming += len(np.unique(named_row))
    tally.named += np.bincount(named, minlength=names.count)
    tally.named_unlabelled += np.bincount(named[label[named_row] == NO_LABEL], minlength=names.count)
    tally.words.append(_count_images_per_word(words, row))
    if len(tally.words) > MERGE_EVERY:
        tally.words[:] = [merge_word_counts(tally.words)]


def _count_images_per_word(words: Words, row: Ints) -> Any:
    """Count the images of each word in a shard."""
    encoded = compute.dictionary_encode(words.words)
    size = len(encoded.dictionary)
    _, number = distinct_pairs(row[words.text], encoded.indices.to_numpy().astype(np.int64), size)
    return pa.table({"word": encoded.dictionary, "images": np.bincount(number, minlength=size)})


def merge_word_counts(tables: list[Any]) -> Any:
    """Merge the word counts of several shards into one table, most frequent first, then by spelling."""
    if not tables:
        return pa.table({"word": pa.array([], pa.string()), "images": pa.array([], pa.int64())})
    whole: Any = pa.concat_tables(tables).group_by("word").aggregate([("images", "sum")])
    whole = whole.rename_columns(["word", "images"])
    return whole.sort_by([("images", "descending"), ("word", "ascending")])
