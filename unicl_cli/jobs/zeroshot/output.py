"""Answers on standard output: a line, a CSV row or a JSON line per image, written as soon as they are ready."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from unicl_cli.core.json_output import format_json
from unicl_cli.errors import UniclError, csv_cell, escape_control
from unicl_cli.formats import format_share
from unicl_cli.inference.progress import progress

Row = Mapping[str, Any]
Format = Callable[[Sequence[Row]], str]
NONE = "none of these"
"""Shown for an image without a label."""


def json_lines(rows: Sequence[Row]) -> str:
    return "".join(f"{format_json(row)}\n" for row in rows)


def text_lines(*, by_cosine: bool) -> Format:
    """Return the format ``path<TAB>cat 93.1 %<TAB>dog 5.0 %``, or with cosines ``path<TAB>cat 0.287``."""

    def form(rows: Sequence[Row]) -> str:
        return "".join(f"{format_line(row, by_cosine=by_cosine)}\n" for row in rows)

    return form


def format_line(row: Row, *, by_cosine: bool = False) -> str:
    path = escape_control(row["path"])
    if row["error"] is not None:
        return f"{path}\terror: {escape_control(row['error'])}"
    none = [NONE] if row["label"] is None else []
    shown = (
        f"{escape_control(item['label'])} {format_cosine(item['cosine']) if by_cosine else format_share(item['prob'])}"
        for item in row["top"]
    )
    return "\t".join([path, *none, *shown])


def format_cosine(value: float) -> str:
    return f"{value:.3f}"


def csv_rows(top_k: int) -> Format:
    """Return the CSV format: ``path, label, prob, error, label_1, prob_1, cosine_1 …``, with a header."""
    header = ["path", "label", "prob", "error"]
    header += [f"{name}_{place}" for place in range(1, top_k + 1) for name in ("label", "prob", "cosine")]
    begun = False

    def form(rows: Sequence[Row]) -> str:
        nonlocal begun
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if not begun:
            writer.writerow(header)
        begun = True
        for row in rows:
            best = [item[name] for item in row["top"] for name in ("label", "prob", "cosine")]
            cells = [row["path"], row["label"], row["prob"], row["error"], *best]
            writer.writerow([*map(csv_cell, cells), *[None] * (len(header) - len(cells))])
        return out.getvalue()

    return form


def ignore(more: int) -> None:
    del more


def write_answers(
    batches: Iterable[Sequence[Row]], write: Callable[[bytes], None], form: Format, total: int | None
) -> None:
    """Write each batch when it is ready; at the end raise UniclError if an image has no answer.

    Names that are not UTF-8 are written with backslashes, which JSON reads back. On a terminal, an error that the rows
    show is not printed again, and the only image's error is no row.
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
                    failed, first = failed + 1, first or format_line(row).replace("\terror", "")
            advance(len(rows))
    if not seen:
        raise UniclError("no images: the list on standard input is empty", "write one path per line")
    if failed and seen == 1:
        raise UniclError(first, "check the path and the file: it was the only image")
    if failed:
        place = "" if terminal else f", first {first}"
        raise UniclError(f"{failed:,} of {seen:,} images could not be read{place}", "see their rows for the reasons")
