"""A single pass over a corpus's Parquet shards: labels, sizes, hashes and texts, without decoding an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.class_mentions import ClassNameFinder, Words, compute, distinct_pairs, split_words
from unicl_cli.data.corpus import Corpus, integers_of, sets_of_labels, sets_of_lists
from unicl_cli.data.corpus_format import KNOWN, LABELS, MEDIA
from unicl_cli.data.manifest import Shard
from unicl_cli.data.shard_checks import ShardRules, open_shard, read_columns
from unicl_cli.evaluate.annotations import join_sets
from unicl_cli.evaluator_contracts import RowSets

Ints = NDArray[np.int64]
ImageColumns = tuple[NDArray[np.int16], Ints, Ints]
MAX_SIDE = 1 << 16
"""Longer sides are counted as this."""
SAMPLED_TEXTS = 100_000
"""Approximate number of texts kept for the tokenizer, evenly spread over all rows."""
MERGE_EVERY = 64
"""Number of shards between two merges of the word counts."""
_MEDIA_KIND = "media.list.element.kind"
COLUMNS = ("label", "width", "height", "sha256")


class GroupTally:
    """Tallies over the shards of one source, kind and split."""

    def __init__(self, classes: int) -> None:
        self.rows = self.bytes = self.image_bytes = self.texts = 0
        self.media: Counter[str] = Counter()
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
    """The result of the pass. ``images`` holds (split number, label set, first 8 bytes of the sha256) of every row.

    A label set is a label, NO_LABEL, or a hash of several labels. ``sets`` are those of the label rows of the split.
    """

    groups: Mapping[tuple[str, str, str], GroupTally]  # (source, kind, split)
    texts: CaptionTally
    words: Any  # a table of (word, images), most frequent first
    images: ImageColumns
    sets: RowSets


def scan_corpus(corpus: Corpus, split: str, advance: Callable[[int], None]) -> CorpusScan:
    """Read every shard of the corpus, texts of ``split`` only. ``advance`` receives the number of rows read."""
    shards = corpus.manifest.shards
    of_split = sum(shard.rows for shard in shards if shard.split == split)
    names, classes = ClassNameFinder(corpus.classes), len(corpus.classes)
    groups: dict[tuple[str, str, str], GroupTally] = {}
    texts = CaptionTally(classes, max(1, of_split // SAMPLED_TEXTS))
    images: list[ImageColumns] = []
    labelled: list[RowSets] = []
    splits = list(corpus.splits)
    for shard in shards:
        group = groups.setdefault((shard.source, shard.kind, shard.split), GroupTally(classes))
        rules = ShardRules(shard.kind, classes, corpus.groups)
        table, payload, count = _read(corpus.path / shard.file, shard, rules, texts=shard.split == split)
        sets = _sets_of(table)
        images.append(_image_columns(table, splits.index(shard.split), sets))
        group.rows, group.bytes = group.rows + len(table), group.bytes + shard.bytes
        group.image_bytes, group.texts = group.image_bytes + payload, group.texts + count
        group.media.update(_count_media(table))
        group.labels += np.bincount(sets.values, minlength=classes)
        _add_sides(group, table)
        if shard.split == split:
            _add_texts(texts, table, np.diff(sets.ends) == 0, names)
            labelled += [sets] if shard.kind == "labels" else []
        advance(len(table))
    every = [np.concatenate(column) for column in zip(*images, strict=True)]
    columns = every[0], every[1], every[2]
    return CorpusScan(groups, texts, merge_word_counts(texts.words), columns, join_sets(labelled))


def _read(path: Path, shard: Shard, rules: ShardRules, *, texts: bool) -> tuple[Any, int, int]:
    """Return a shard's columns, and from the file's footer the bytes of its images and the number of its texts."""
    sets = () if rules.groups is None else (LABELS, KNOWN)
    columns = [*COLUMNS, *sets, *(("texts", "text_hash") if texts else ())]
    with open_shard(path, shard.row_groups) as file:
        sizes = dict(_chunks(file.metadata))
    columns += [_MEDIA_KIND] if any(path == _MEDIA_KIND for _, path in sizes) else []
    table = read_columns(path, shard.row_groups, columns, rules)
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


def _count_media(table: Any) -> Mapping[str, int]:
    """Return the rows that have each kind of media; their bytes are not read."""
    if MEDIA not in table.column_names:
        return {}
    kinds = compute.struct_field(compute.list_flatten(table.column(MEDIA)), "kind")
    return Counter(kinds.to_pylist())


def _sets_of(table: Any) -> RowSets:
    """Return the label sets of a shard's rows."""
    if LABELS in table.column_names:
        return sets_of_lists(table.column(LABELS), table.column(KNOWN))
    return sets_of_labels(integers_of(table.column("label")))


def _image_columns(table: Any, split: int, sets: RowSets) -> ImageColumns:
    """Return the image columns of a shard's rows."""
    digests = table.column("sha256").combine_chunks()
    whole = digests.chunk(0) if isinstance(digests, pa.ChunkedArray) else digests
    starts = np.frombuffer(whole.buffers()[1], np.uint8)[whole.offset * 32 : (whole.offset + len(whole)) * 32]
    prefix = starts.reshape(-1, 32)[:, :8].copy().view(np.int64)[:, 0]
    return np.full(len(prefix), split, np.int16), hash_sets(sets), prefix


def hash_sets(sets: RowSets) -> Ints:
    """Return a number for each row's label set, int64 (rows,): a label, NO_LABEL, or a hash above all labels."""
    mixed = sets.values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # splitmix64, whose sums wrap around
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    counts = np.diff(sets.ends)
    found = ((sums[sets.ends[1:]] - sums[sets.ends[:-1]]) >> np.uint64(2) | np.uint64(1 << 62)).astype(np.int64)
    found[counts == 0] = NO_LABEL
    found[counts == 1] = sets.values[sets.ends[:-1][counts == 1]]
    return found


def _add_sides(group: GroupTally, table: Any) -> None:
    width, height = (np.minimum(table.column(name).to_numpy(), MAX_SIDE) for name in ("width", "height"))
    group.short += np.bincount(np.minimum(width, height), minlength=MAX_SIDE + 1)
    group.long += np.bincount(np.maximum(width, height), minlength=MAX_SIDE + 1)


def _add_texts(tally: CaptionTally, table: Any, is_free: NDArray[np.bool_], names: ClassNameFinder) -> None:
    """Add the captions of a shard; ``is_free`` marks the rows without a label."""
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
    tally.unlabelled += int(is_free[met].sum())
    words = split_words(flat)
    text, named = names.find(words)
    named_row, named = distinct_pairs(row[text], named, names.count)
    tally.naming += len(np.unique(named_row))
    tally.named += np.bincount(named, minlength=names.count)
    tally.named_unlabelled += np.bincount(named[is_free[named_row]], minlength=names.count)
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
