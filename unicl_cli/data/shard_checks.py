"""The checks of a shard: its columns and row groups when it is opened, and the values of each row group once read."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.corpus_format import MEDIA, MEDIA_SCHEMA, SCHEMA
from unicl_cli.data.manifest import repair_hint
from unicl_cli.errors import UniclError

compute: Any = pc  # no stubs
_NULLABLE = frozenset(("url", "phash"))
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)


class ShardRules(NamedTuple):
    """The kind of a shard's rows and the number of its corpus's classes, which its values must agree with."""

    kind: str
    classes: int


def open_shard(shard: Path, row_groups: Sequence[int]) -> pq.ParquetFile:
    """Open a shard ``CORPUS/data/SPLIT/NAME.parquet``; UniclError unless its columns and row groups are those written.

    ``row_groups`` are the numbers of rows that the manifest has.
    """
    try:
        file = pq.ParquetFile(shard, memory_map=True, page_checksum_verification=True)
        schema, metadata = file.schema_arrow, file.metadata
        found = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    except _UNREADABLE as error:
        raise explain_damage(shard, error) from error
    problem = _find_wrong_column(schema)
    if found != list(row_groups):
        is_cut_otherwise = sum(found) == sum(row_groups)
        problem = f"has {sum(found)} rows instead of {sum(row_groups)}"
        problem = "its row groups are not those of the manifest" if is_cut_otherwise else problem
    if problem:
        raise explain_damage(shard, problem)
    return file


def read_group(file: pq.ParquetFile, shard: Path, group: int, columns: Sequence[str], rules: ShardRules) -> pa.Table:
    """Read columns of a row group of an open shard; UniclError if they cannot be read or break a rule."""
    try:
        table = file.read_row_group(group, columns=list(columns), use_threads=False).combine_chunks()
        problem = find_fault(table, rules)
    except _UNREADABLE as error:
        raise explain_damage(shard, f"row group {group}: {error}") from error
    if problem:
        raise explain_damage(shard, f"row group {group}: {problem}")
    return table


def read_columns(shard: Path, row_groups: Sequence[int], columns: Sequence[str], rules: ShardRules) -> pa.Table:
    """Read whole columns of a shard; UniclError as `read_group`."""
    file = open_shard(shard, row_groups)
    try:
        with file:
            table = file.read(columns=list(columns), use_threads=False)
        problem = find_fault(table, rules)
    except _UNREADABLE as error:
        raise explain_damage(shard, error) from error
    if problem:
        starts = accumulate(row_groups, initial=0)
        parts = (find_fault(table.slice(start, rows), rules) for start, rows in zip(starts, row_groups, strict=False))
        group, problem = next((group, part) for group, part in enumerate(parts) if part)
        raise explain_damage(shard, f"row group {group}: {problem}")
    return table


def find_fault(table: pa.Table, rules: ShardRules) -> str | None:
    """Return the first rule that rows break, in the columns that ``table`` has; None if they are sound.

    No cell is null or invalid UTF-8, and each side has a pixel. A label row has a class, and the others have none.
    A caption row has texts, an image row has none, and each text has its hash. ArrowInvalid for offsets or text that
    cannot be.
    """
    table.validate(full=True)
    there = set(table.column_names)
    for name in there - _NULLABLE:
        if _has_null(table.column(name), name):
            return f"{name} is missing in a row"
    for name in there & {"width", "height"}:
        if compute.min(table.column(name)).as_py() < 1:
            return f"{name} is less than 1 in a row"
    problem = _find_wrong_label(table.column("label"), rules) if "label" in there else None
    return problem or (_find_wrong_texts(table, rules.kind) if "texts" in there else None)


def _find_wrong_texts(table: pa.Table, kind: str) -> str | None:
    counts = compute.list_value_length(table.column("texts"))
    if "text_hash" in table.column_names and not counts.equals(compute.list_value_length(table.column("text_hash"))):
        return "the numbers of texts and of their hashes differ"
    if kind == "captions" and compute.min(counts).as_py() == 0:
        return "a row of captions has no text"
    return "a row of images has a text" if kind == "images" and compute.max(counts).as_py() else None


def explain_damage(shard: Path, problem: object) -> UniclError:
    """Return the error for a shard ``CORPUS/data/SPLIT/NAME.parquet`` that cannot be used."""
    line = " ".join(str(problem).split())
    return UniclError(f"{shard}: damaged: {line}", repair_hint(shard.parent.parent.parent))


def _find_wrong_column(schema: pa.Schema) -> str | None:
    """Return the first column that is missing or has another type; columns of later versions may follow."""
    wanted = MEDIA_SCHEMA if MEDIA in schema.names else SCHEMA
    for field in wanted:
        if schema.get_field_index(field.name) < 0:
            return f"has no column {field.name}, or has it twice"
        if (found := schema.field(field.name).type) != field.type:
            return f"its column {field.name} has the type {found} instead of {field.type}"
    return None


def _has_null(column: pa.ChunkedArray, name: str) -> bool:
    if column.null_count:
        return True
    if name == "image":
        return bool(compute.struct_field(column, "bytes").null_count)
    if name == MEDIA:
        items = compute.list_flatten(column)
        return bool(items.null_count) or any(compute.struct_field(items, f).null_count for f in ("kind", "bytes"))
    return pa.types.is_list(column.type) and bool(compute.list_flatten(column).null_count)


def _find_wrong_label(labels: pa.ChunkedArray, rules: ShardRules) -> str | None:
    found = compute.min_max(labels).as_py()
    low, high = (0, rules.classes - 1) if rules.kind == "labels" else (NO_LABEL, NO_LABEL)
    wrong = next((label for label in found.values() if label is not None and not low <= label <= high), None)
    if wrong is None:
        return None
    return f"label {wrong} is out of range: rows of {rules.kind} have " + (f"0 … {high}" if high >= 0 else str(low))
