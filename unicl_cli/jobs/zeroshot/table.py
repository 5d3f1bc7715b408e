"""Answers as an aligned table on a terminal: a line per image, as many of its best classes as fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from unicl_cli.errors import escape_control
from unicl_cli.jobs.zeroshot.output import NONE, AnswerBlock, Layout, format_group, format_item, format_score, split_row

MAX_GROUP = 16
COMMON_LABEL, MAX_LABEL = 12, 24
"""Width of a class name that always has room, and the largest; longer names are cut."""
MIN_PATH = 24
"""The path of an image is cut to no less than this to make room for classes."""


class TerminalTable:
    """The form of the answers; the widths of the columns are fixed by the first batch."""

    def __init__(self, layout: Layout, *, width: int) -> None:
        self.layout, self.width = layout, width
        self.figure = 6 if layout.by_cosine else 7
        self.label = min(COMMON_LABEL, max(cell_len(escape_control(name)) for name in layout.names))
        self.group = min(MAX_GROUP, max((cell_len(format_group(name)) for name in layout.groups), default=0))
        self.path = self.shown = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> str:
        if not self.shown:
            self.fit_columns(rows)
        return "".join(f"{line}\n" for row in rows for line in self.lines(row))

    def fit_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Choose the widths of path and class names, and the number of classes on a line, by the first rows."""
        blocks = [block for row in rows if row["error"] is None for block in split_row(row, self.layout)]
        labels = [cell_len(escape_control(item["label"])) for block in blocks for item in block.items]
        self.label = min(MAX_LABEL, max([self.label, *labels]))
        column = 2 + self.label + 1 + self.figure
        room = self.width - (2 + self.group if self.group else 0)
        longest = max(cell_len(escape_control(row["path"])) for row in rows)
        self.path = min(longest, max(MIN_PATH, room - self.layout.wanted * column), max(1, room - column))
        self.shown = max(1, min(self.layout.wanted, (room - self.path) // column))

    def lines(self, row: Mapping[str, Any]) -> list[str]:
        """Return the lines of one image, one for each answer; an error is not cut."""
        path = fit_end(escape_control(row["path"]), self.path)
        if row["error"] is not None:
            return [f"{path}  error: {escape_control(row['error'])}"]
        lines: list[str] = []
        for block in split_row(row, self.layout):
            group = [] if block.group is None else [fit_start(format_group(block.group), self.group)]
            for cells in self.wrap(self.cells(block)):
                lines.append("  ".join([path, *group, *cells]).rstrip())
                path, group = " " * self.path, [" " * self.group for _ in group]
        return lines

    def cells(self, block: AnswerBlock) -> list[str]:
        """Return the classes of an answer with their scores; of a path down a taxonomy, the best."""
        none = [] if block.label is not None else [fit_start(NONE, self.label + 1 + self.figure)]
        if block.items and "lineage" in block.items[0]:
            return ["  ".join([*none, self.lineage(block.items[0]["lineage"])])]
        return [*none, *map(self.cell, block.items)]

    def wrap(self, cells: list[str]) -> list[list[str]]:
        """Return the cells of each line: all of them with --multi, since each is an answer, else those of one line."""
        starts = range(0, len(cells), self.shown) if self.layout.is_multi else (0,)
        return [cells[start : start + self.shown] for start in starts]

    def cell(self, item: Mapping[str, Any]) -> str:
        """Return a class and its metric."""
        figure = format_score(item, by_cosine=self.layout.by_cosine)
        return f"{fit_start(escape_control(item['label']), self.label)} {figure:>{self.figure}}"

    def lineage(self, path: Sequence[Mapping[str, Any]]) -> str:
        """Return a path down a taxonomy; its beginning is left out where it does not fit."""
        room = self.width - self.path - (2 + self.group if self.group else 0) - 2
        for start in range(len(path)):
            text = ("… > " if start else "") + format_item({"lineage": path[start:]}, by_cosine=False)
            if cell_len(text) <= room:
                return text
        return self.cell(path[-1])

    def note(self) -> str | None:
        """Return a sentence on the classes that do not fit on a line, or None."""
        wanted = self.layout.wanted
        shown = 1 if self.layout.has_paths and not self.layout.groups else self.shown
        if self.layout.is_multi or shown >= wanted or not self.shown:
            return None
        return f"{shown} of {wanted} classes fit on a line; --csv and --json print all"


def fit_start(text: str, width: int) -> str:
    """Pad or cut the end of a text to ``width`` cells."""
    return set_cell_size(text, width) if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"


def fit_end(text: str, width: int) -> str:
    """Pad a text to ``width`` cells, or cut its start: the end of a path says more."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    while cell_len(text) > width - 1:
        text = text[1:]
    return set_cell_size(f"…{text}", width)
