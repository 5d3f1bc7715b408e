"""Answers about images on standard output: written batch by batch, with one line for all that could not be read."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from unicl_cli.errors import UniclError, csv_cell, escape_control
from unicl_cli.inference.progress import progress
from unicl_cli.storage.json_output import format_json

Row = Mapping[str, Any]
"""The answer about an image: its ``path``, its ``error`` or None, and whatever the command says."""
Format = Callable[[Sequence[Row]], str]


def json_lines(rows: Sequence[Row]) -> str:
    """Format rows as one JSON line each."""
    return "".join(f"{format_json(row)}\n" for row in rows)


def csv_lines(header: Sequence[str], cells: Callable[[Row], Sequence[Any]]) -> Format:
    """Return the CSV format: the ``header`` before the first row, the ``cells`` of each row and empty ones behind."""
    begun = False

    def form(rows: Sequence[Row]) -> str:
        nonlocal begun
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if not begun:
            writer.writerow(map(csv_cell, header))
        begun = True
        for row in rows:
            own = cells(row)
            writer.writerow([*map(csv_cell, own), *[None] * (len(header) - len(own))])
        return out.getvalue()

    return form


def format_error(row: Row, between: str = "\terror: ") -> str:
    """Format the row of an image that could not be read."""
    return f"{escape_control(row['path'])}{between}{escape_control(row['error'])}"


def ignore(more: int) -> None:
    del more


def write_answers(
    batches: Iterable[Sequence[Row]], write: Callable[[bytes], None], form: Format, total: int | None
) -> None:
    """Write each batch when it is ready; at the end raise UniclError if an image has no answer.

    Names that are not UTF-8 are written with backslashes, which JSON reads back. On a terminal, an error that the rows
    show is not printed again, and the only image's error has no row.
    """
    seen, failed, first = 0, 0, ""
    terminal = sys.stdout.isatty()
    with nullcontext(ignore) if terminal else progress("images", total) as advance:  # rows show the progress, too
        for rows in batches:
            if not (terminal and total == 1 and rows[0]["error"] is not None):
                write(form(rows).encode("utf-8", "backslashreplace"))
            seen += len(rows)
            for row in rows:
                if row["error"] is not None:
                    failed, first = failed + 1, first or format_error(row, ": ")
            advance(len(rows))
    if not seen:
        raise UniclError("no images: the list on standard input is empty", "write one path per line")
    if failed and seen == 1:
        raise UniclError(first, "check the path and the file: it was the only image")
    if failed:
        place = "" if terminal else f", first {first}"
        raise UniclError(f"{failed:,} of {seen:,} images could not be read{place}", "see their rows for the reasons")
