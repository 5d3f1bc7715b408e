"""Answers as they leave the command: a line, a CSV row or a JSON line each, as soon as there are some."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from unicl_cli.errors import UniclError, escape_control
from unicl_cli.inference.progress import progress

Row = Mapping[str, Any]
Form = Callable[[Sequence[Row]], str]
CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), 127)}


def visible(name: str) -> str:
    return escape_control(name.translate(CONTROLS))


def json_lines(rows: Sequence[Row]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n" for row in rows)


def lines(*, by_cosine: bool) -> Form:
    """``path<TAB>cat 93.1 %<TAB>dog 5.0 %``, with cosines ``cat 0.287``, or the path and why there is no answer."""

    def form(rows: Sequence[Row]) -> str:
        return "".join(f"{line(row, by_cosine=by_cosine)}\n" for row in rows)

    return form


def line(row: Row, *, by_cosine: bool = False) -> str:
    path = visible(row["path"])  # a line break in a name would make two rows
    if row["error"] is not None:
        return f"{path}\terror: {row['error']}"
    none = ["none of these"] if row["label"] is None else []
    shown = (
        f"{visible(item['label'])} " + (f"{item['cosine']:.3f}" if by_cosine else f"{100 * item['prob']:.1f} %")
        for item in row["top"]
    )
    return "\t".join([path, *none, *shown])


def table(top_k: int) -> Form:
    """CSV: ``path, label, prob, error``, then ``label_1, prob_1, cosine_1 …``; the header before the first row."""
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
            writer.writerow([*cells, *[None] * (len(header) - len(cells))])
        return out.getvalue()

    return form


def silent(more: int) -> None:
    del more


def tell(batches: Iterable[Sequence[Row]], write: Callable[[bytes], None], form: Form, total: int | None) -> None:
    """Writes each batch when it is there; at the end raises UniclError where an image has no answer.

    Names that are no UTF-8 are written with backslashes, which JSON reads back.
    """
    seen, failed, first = 0, 0, ""
    quiet = sys.stdout.isatty()  # where the rows themselves show how far it is
    with nullcontext(silent) if quiet else progress("pictures", total) as advance:
        for rows in batches:
            write(form(rows).encode("utf-8", "backslashreplace"))
            seen += len(rows)
            for row in rows:
                if row["error"] is not None:
                    failed, first = failed + 1, first or line(row).replace("\terror", "")
            advance(len(rows))
    if not seen:
        raise UniclError("no images: the list on standard input is empty", "write a path a line")
    if failed and seen == 1:
        raise UniclError(first, "there was nothing else to classify")
    if failed:
        raise UniclError(f"{failed} of {seen} images could not be read, first {first}", "their rows say why")
