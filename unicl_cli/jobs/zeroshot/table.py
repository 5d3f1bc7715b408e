"""Answers as an aligned table on a terminal: a line per image, as many of its best classes as fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from unicl_cli.errors import escape_control
from unicl_cli.formats import format_share
from unicl_cli.jobs.zeroshot.output import NONE, format_cosine

COMMON_LABEL, MAX_LABEL = 12, 24
"""Width of a class name that always has room, and the largest; longer names are cut."""
MIN_PATH = 24
"""The path of an image is cut to no less than this to make room for classes."""


class TerminalTable:
    """The form of the answers; the widths of the columns are fixed by the first batch."""

    def __init__(self, names: Sequence[str], top_k: int, *, by_cosine: bool, width: int) -> None:
        self.by_cosine, self.width, self.wanted = by_cosine, width, min(top_k, len(names))
        self.figure = 6 if by_cosine else 7
        self.label = min(COMMON_LABEL, max(cell_len(escape_control(name)) for name in names))
        self.path = self.shown = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> str:
        if not self.shown:
            self.fit_columns(rows)
        return "".join(f"{self.line(row)}\n" for row in rows)

    def fit_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Choose the widths of path and class names, and the number of classes on a line, by the first rows."""
        labels = [cell_len(escape_control(item["label"])) for row in rows for item in row["top"]]
        self.label = min(MAX_LABEL, max([self.label, *labels]))
        column = 2 + self.label + 1 + self.figure
        longest = max(cell_len(escape_control(row["path"])) for row in rows)
        self.path = min(longest, max(MIN_PATH, self.width - self.wanted * column), max(1, self.width - column))
        self.shown = max(1, min(self.wanted, (self.width - self.path) // column))

    def line(self, row: Mapping[str, Any]) -> str:
        """Return the line of one image; an error is not cut."""
        path = fit_end(escape_control(row["path"]), self.path)
        if row["error"] is not None:
            return f"{path}  error: {escape_control(row['error'])}"
        none = [] if row["label"] is not None else [fit_start(NONE, self.label + 1 + self.figure)]
        return "  ".join([path, *none, *map(self.cell, row["top"])][: 1 + self.shown]).rstrip()

    def cell(self, item: Mapping[str, Any]) -> str:
        """Return a class and its figure."""
        figure = format_cosine(item["cosine"]) if self.by_cosine else format_share(item["prob"])
        return f"{fit_start(escape_control(item['label']), self.label)} {figure:>{self.figure}}"

    def note(self) -> str | None:
        """Return a sentence on the classes that do not fit on a line, or None."""
        if self.shown >= self.wanted or not self.shown:
            return None
        return f"{self.shown} of {self.wanted} classes fit on a line; --csv and --json print all"


def fit_start(text: str, width: int) -> str:
    """Pad or cut the end of a text to ``width`` cells."""
    return set_cell_size(text, width) if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"


def fit_end(text: str, width: int) -> str:
    """Pad a text to ``width`` cells, or cut its start: the end of a path tells more."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    while cell_len(text) > width - 1:
        text = text[1:]
    return set_cell_size(f"…{text}", width)
