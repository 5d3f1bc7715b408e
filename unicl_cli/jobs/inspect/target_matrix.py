"""Target matrices on a terminal: two rows of cells to a line, side by side where there is room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from unicl_cli.evaluate.tables import make_table
from unicl_cli.jobs.inspect.batch import MISSED, NEGATIVE, POSITIVE

COLOURS = {NEGATIVE: "grey19", POSITIVE: "blue", MISSED: "dark_orange3"}
UPPER, LOWER, FULL = "▀", "▄", "█"
PLAIN = {(False, False): " ", (True, False): UPPER, (False, True): LOWER, (True, True): FULL}
LISTED = 12
"""Rows that are listed with their texts."""


class Matrix:
    """Cells in colour where there is colour, else the positives alone."""

    def __init__(self, cells: Sequence[str]) -> None:
        self.cells = [*cells, *([NEGATIVE * len(cells[0])] if len(cells) % 2 else [])]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del options
        coloured = console.color_system is not None and not console.no_color
        for upper, lower in zip(self.cells[::2], self.cells[1::2], strict=True):
            line = Text(no_wrap=True)
            for pair in zip(upper, lower, strict=True):
                if coloured:
                    line.append(UPPER, Style(color=COLOURS[pair[0]], bgcolor=COLOURS[pair[1]]))
                else:
                    line.append(PLAIN[pair[0] == POSITIVE, pair[1] == POSITIVE])
            yield line


def batch_tables(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Both matrices, what they miss, and some of the rows."""
    clip, unicl, n = facts["clip"], facts["unicl"], len(facts["shown"])
    titles = {"clip": "as CLIP sees it", "unicl": "as UniCL sees it"}
    panels = [
        Panel(Matrix(facts["matrix"][name]), title=title, width=max(n + 4, len(title) + 6), padding=(0, 1))
        for name, title in titles.items()
    ]
    yield SideBySide(panels)
    table = make_table(
        f"The batch after {facts['step']} steps: {facts['batch_size']:,} rows", ("pairs",), ("CLIP", "UniCL")
    )
    table.add_row("positives", f"{clip['positives']:,}", f"{unicl['positives']:,}")
    table.add_row("of one class or row, but negatives", f"{clip['false_negatives']:,}", "0")
    same = f"{unicl['same_text_other_key']:,}"
    table.add_row("of one text without a common class, negatives", same, same)
    naming = f"{unicl['captions_naming_the_class']:,}"
    table.add_row("of a caption and the class it names, negatives", naming, naming)
    table.add_row("false negatives for each image", f"{clip['per_anchor']:.2f}", "")
    yield table
    yield rows_table(facts)


def rows_table(facts: Mapping[str, Any]) -> Table:
    kinds = f"{facts['label_rows']:,} rows with a label, {facts['caption_rows']:,} without"
    table = make_table(f"Rows: {kinds}, {facts['distinct_texts']:,} distinct texts", ("class", "text"), ("positives",))
    for row in facts["shown"][:LISTED]:
        table.add_row(row["class"] or "-", row["text"], str(row["positives"]))
    if len(facts["shown"]) > LISTED:
        table.add_row("…", f"{len(facts['shown']) - LISTED} more are drawn above", "")
    return table


class SideBySide:
    """Panels in one line, or one below the other where the terminal is too narrow."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        self.panels = panels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        if sum((panel.width or 0) + 1 for panel in self.panels) > options.max_width:
            yield Group(*self.panels)
            return
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*self.panels)
        yield grid
