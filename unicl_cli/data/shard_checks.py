"""The checks of a shard: its columns and row groups when it is opened, and the values of each row group once read."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.corpus_format import KNOWN, LABELS, MEDIA, SCHEMA, schema_of
from unicl_cli.data.manifest import repair_hint
from unicl_cli.errors import UniclError
from unicl_cli.storage.remote import RangeFile, RemoteOutput, RemotePath

_NULLABLE = frozenset(("url", "phash"))
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)


class ShardRules(NamedTuple):
    """The kind of a shard's rows and the classes of its corpus, which its values must agree with.

    ``groups`` are the number of each class's group in a corpus with label sets; None in another. It is empty where no
    manifest gives them.
    """

    kind: str
    classes: int
    groups: tuple[int, ...] | None = None


def open_shard(shard: Path, row_groups: Sequence[int]) -> pq.ParquetFile:
    """Open a shard ``CORPUS/data/SPLIT/NAME.parquet``; UniclError unless its columns and row groups are those written.

    ``row_groups`` are the numbers of rows that the manifest has.
    """
    try:
        file = _open_remote(shard) if isinstance(shard, RemotePath) else _open_local(shard)
        schema, metadata = file.schema_arrow, file.metadata
        found = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    except _UNREADABLE as error:
        raise explain_unreadable(shard, error, error) from error
    problem = _find_wrong_column(schema)
    if found != list(row_groups):
        is_cut_otherwise = sum(found) == sum(row_groups)
        problem = f"has {sum(found)} rows instead of {sum(row_groups)}"
        problem = "its row groups are not those of the manifest" if is_cut_otherwise else problem
    if problem:
        raise explain_damage(shard, problem)
    return file


def _open_local(shard: Path) -> pq.ParquetFile:
    # pyarrow takes a leading ~ for the home directory, Python does not
    return pq.ParquetFile(shard.absolute(), memory_map=True, page_checksum_verification=True)


def _open_remote(shard: RemotePath, metadata: Any = None) -> pq.ParquetFile:
    """Open a shard of another file system; columns that are neighbours are read by one request."""
    size = shard.read_size() if isinstance(shard, RemoteOutput) else _remote_size(shard)
    source = pa.PythonFile(RangeFile(shard, size), mode="r")
    return pq.ParquetFile(source, metadata=metadata, pre_buffer=True, page_checksum_verification=True)


@lru_cache(maxsize=1_000_000)
def _remote_size(shard: RemotePath) -> int:
    """Return the size of a shard, asked for once: a shard never changes where it is only read."""
    return shard.read_size()


def reopen_shard(file: pq.ParquetFile, shard: Path) -> pq.ParquetFile:
    """Return a shard that another thread may read while one is open, whose footer it takes; local ones are fast."""
    return _open_remote(shard, file.metadata) if isinstance(shard, RemotePath) else file


def read_group(file: pq.ParquetFile, shard: Path, group: int, columns: Sequence[str], rules: ShardRules) -> Any:
    """Read columns of a row group of an open shard; UniclError if they cannot be read or break a rule."""
    try:
        table = file.read_row_group(group, columns=list(columns), use_threads=False).combine_chunks()
        problem = _find_missing(table, columns) or find_fault(table, rules)
    except _UNREADABLE as error:
        raise explain_unreadable(shard, error, f"row group {group}: {error}") from error
    if problem:
        raise explain_damage(shard, f"row group {group}: {problem}")
    return table


def read_columns(shard: Path, row_groups: Sequence[int], columns: Sequence[str], rules: ShardRules) -> Any:
    """Read whole columns of a shard; UniclError as `read_group`."""
    file = open_shard(shard, row_groups)
    try:
        with file:
            table = file.read(columns=list(columns), use_threads=False).combine_chunks()
        table.validate(full=True)  # text that is not UTF-8, which a row group shows when it becomes Python's
        problem = _find_missing(table, columns) or find_fault(table, rules)
    except _UNREADABLE as error:
        raise explain_unreadable(shard, error, error) from error
    if problem:
        starts = accumulate(row_groups, initial=0)
        parts = (
            find_fault(table.slice(start, rows).combine_chunks(), rules)
            for start, rows in zip(starts, row_groups, strict=False)
        )
        group, problem = next((group, part) for group, part in enumerate(parts) if part)
        raise explain_damage(shard, f"row group {group}: {problem}")
    return table


def _find_missing(table: Any, columns: Sequence[str]) -> str | None:
    """Return the first column that was asked for and is not there: a shard without sets in a corpus that has them."""
    missing = [name for name in columns if name.partition(".")[0] not in table.column_names]
    return f"has no column {missing[0]}" if missing else None


def find_fault(table: Any, rules: ShardRules) -> str | None:
    """Return the first rule that rows break, in the columns that ``table`` has; None if they are sound.

    No cell is null, and each side has a pixel. A label row has a class, and the others have none. A caption row has
    texts, an image row has none, and each text has its hash.
    """
    faults = (
        _find_fault_of_batch(dict(zip(b.schema.names, b.columns, strict=True)), rules) for b in table.to_batches()
    )
    return next((fault for fault in faults if fault), None)


def _find_fault_of_batch(there: Mapping[str, Any], rules: ShardRules) -> str | None:
    """Return the first rule that rows break, whose columns are arrays by their name."""
    for name, column in there.items():
        if name not in _NULLABLE and _has_null(column):
            return f"{name} is missing in a row"
        if name in ("width", "height") and _numbers_of(column).min() < 1:
            return f"{name} is less than 1 in a row"
    problem = None
    if LABELS in there and "label" in there:
        problem = _find_wrong_set(there["label"], there[LABELS], there.get(KNOWN), rules)
    elif "label" in there and rules.groups is None:
        problem = _find_wrong_label(there["label"], rules)
    if problem or "texts" not in there:
        return problem
    return _find_wrong_texts(there["texts"], there.get("text_hash"), rules.kind)


def _find_wrong_texts(texts: Any, hashes: Any | None, kind: str) -> str | None:
    if hashes is not None and not texts.offsets.equals(hashes.offsets):
        return "the numbers of texts and of their hashes differ"
    if kind == "labels":
        return None
    counts = np.diff(_numbers_of(texts.offsets))
    if kind == "captions":
        return None if counts.min() else "a row of captions has no text"
    return "a row of images has a text" if counts.any() else None


def explain_unreadable(shard: Path, error: Exception, problem: object) -> UniclError:
    """Return the error for a shard that cannot be read: its file system refuses, or else it is damaged."""
    if isinstance(shard, RemotePath) and isinstance(error, OSError) and error.filename is not None:
        hint = "check the connection, then run the same command again to continue"
        return UniclError(f"{shard}: cannot be read: {error.strerror}", hint)
    return explain_damage(shard, problem)


def explain_damage(shard: Path, problem: object) -> UniclError:
    """Return the error for a shard ``CORPUS/data/SPLIT/NAME.parquet`` that cannot be used."""
    line = " ".join(str(problem).split())
    return UniclError(f"{shard}: damaged: {line}", repair_hint(shard.parent.parent.parent))


def _numbers_of(column: Any) -> NDArray[Any]:
    """Return an array of integers without nulls; pyarrow's own way would import pandas."""
    return np.from_dlpack(column)


def _find_wrong_column(schema: Any) -> str | None:
    """Return the first column that is missing or has another type; columns of later versions may follow."""
    if schema.equals(SCHEMA):
        return None
    for field in schema_of(sets=LABELS in schema.names, media=MEDIA in schema.names):
        if schema.get_field_index(field.name) < 0:
            return f"has no column {field.name}, or has it twice"
        if (found := schema.field(field.name).type) != field.type:
            return f"its column {field.name} has the type {found} instead of {field.type}"
    return None


def _has_null(column: Any) -> bool:
    """Return True if a cell of an array is null, or a part of a cell: an item, or the bytes of an image."""
    if column.null_count:
        return True
    if isinstance(column, pa.ListArray):
        return _has_null(column.flatten())
    if isinstance(column, pa.StructArray):  # an image, whose path is always null, or an item of media
        return any(_has_null(part) for part in column.flatten()[: 1 if "path" in column.type.names else None])
    return False


def _find_wrong_label(labels: Any, rules: ShardRules) -> str | None:
    values = _numbers_of(labels)
    low, high = (0, rules.classes - 1) if rules.kind == "labels" else (NO_LABEL, NO_LABEL)
    wrong = next((int(label) for label in (values.min(), values.max()) if not low <= label <= high), None)
    if wrong is None:
        return None
    return f"label {wrong} is out of range: rows of {rules.kind} have " + (f"0 … {high}" if high >= 0 else str(low))


def _find_wrong_set(label: Any, labels: Any, known: Any, rules: ShardRules) -> str | None:
    """Return what is wrong with label sets: each is ascending, in range and annotated; a single label is ``label``."""
    ends, values = _numbers_of(labels.offsets).astype(np.int64), _numbers_of(labels.flatten()).astype(np.int64)
    ends -= ends[0]
    counts, row = np.diff(ends), np.repeat(np.arange(len(labels)), np.diff(ends))
    if rules.kind != "labels":
        return f"a row of {rules.kind} has labels" if len(values) else None
    if len(values) and not 0 <= values.min() <= values.max() < rules.classes:
        return f"a label set has a label out of range: rows of labels have 0 … {rules.classes - 1}"
    if len(values) > 1 and (np.diff(values)[np.diff(row) == 0] <= 0).any():
        return "a label set is not ascending"
    alone = np.full(len(labels), NO_LABEL)
    alone[counts == 1] = values[ends[:-1][counts == 1]]
    if not np.array_equal(_numbers_of(label), alone):
        return "label is not the only label of its set"
    if known is None or not rules.groups:
        return None
    bits = np.uint64(1) << np.array(rules.groups, np.uint64)
    own = _numbers_of(known).astype(np.uint64)
    if (own & ~np.bitwise_or.reduce(bits)).any() or (bits[values] & ~own[row]).any():
        return "known does not have the groups of the row's labels, or has another bit"
    if (own[counts == 0] == 0).any():
        return "a row of labels has neither a label nor annotations"
    return None
