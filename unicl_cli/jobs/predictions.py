"""Answers to single rows as a file: Parquet, CSV or JSON lines, by the ending of its name."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli.errors import csv_cell
from unicl_cli.storage.files import write_output
from unicl_cli.storage.json_output import format_json

if TYPE_CHECKING:
    from unicl_cli.jobs.evaluators.kept import AnswerColumns

SUFFIXES = (".parquet", ".csv", ".jsonl")
"""Endings of the files that can be written."""


def write_predictions(path: Path, kept: Sequence[AnswerColumns]) -> None:
    """Write the answers to the rows of all data sets, in their order, to one file with one of the ``SUFFIXES``."""
    table = pa.concat_tables([pa.table(dict(columns)) for columns in kept])
    with write_output(path) as part:
        if path.suffix == ".parquet":
            pq.write_table(table, part)
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                if path.suffix == ".csv":
                    csv.writer(file).writerows(map(csv_cell, row) for row in csv_rows(table.to_pydict()))
                else:
                    file.writelines(f"{format_json(row)}\n" for row in table.to_pylist())


def csv_rows(columns: dict[str, list[Any]]) -> Iterator[list[Any]]:
    """Yield a header, then the rows; a column of lists becomes ``name_1``, ``name_2``, …, as many as the longest."""
    lengths = {name: max(map(len, cells)) if isinstance(cells[0], list) else None for name, cells in columns.items()}
    yield [
        title
        for name, length in lengths.items()
        for title in ([name] if length is None else [f"{name}_{place + 1}" for place in range(length)])
    ]
    for row in zip(*columns.values(), strict=True):
        line: list[Any] = []
        for cell, length in zip(row, lengths.values(), strict=True):
            line += [cell] if length is None else [*cell, *[None] * (length - len(cell))]
        yield line
