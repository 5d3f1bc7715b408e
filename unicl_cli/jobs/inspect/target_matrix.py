"""Target matrices for the terminal: two rows of cells per line, side by side if there is room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from unicl_cli.evaluate.tables import make_table
from unicl_cli.formats import count_of
from unicl_cli.jobs.inspect.batch import HIDDEN, MISSED, NEGATIVE, POSITIVE

WEAK = "weak"
"""A positive with less than half of the largest share of its image's target."""
COLOURS = {NEGATIVE: "grey19", POSITIVE: "blue", WEAK: "deep_sky_blue4", MISSED: "dark_orange3", HIDDEN: "grey50"}
UPPER, LOWER, FULL = "▀", "▄", "█"
PLAIN = {(False, False): " ", (True, False): UPPER, (False, True): LOWER, (True, True): FULL}
MAX_LISTED = 12
"""Largest number of rows listed with their texts."""


class Matrix:
    """The cells of a matrix, in colour where the terminal has colour, else the positives alone."""

    def __init__(self, cells: Sequence[Sequence[str]]) -> None:
        self.cells = [*cells, *([[NEGATIVE] * len(cells[0])] if len(cells) % 2 else [])]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del options
        coloured = console.color_system is not None and not console.no_color
        for upper, lower in zip(self.cells[::2], self.cells[1::2], strict=True):
            line = Text(no_wrap=True)
            for pair in zip(upper, lower, strict=True):
                if coloured:
                    line.append(UPPER, Style(color=COLOURS[pair[0]], bgcolor=COLOURS[pair[1]]))
                else:
                    line.append(PLAIN[pair[0] in (POSITIVE, WEAK), pair[1] in (POSITIVE, WEAK)])
            yield line


def shade_positives(facts: Mapping[str, Any]) -> dict[tuple[int, int], float]:
    """Return the share of each positive of UniCL's target over the largest of its image; nothing if all are alike."""
    shares = facts.get("shares", [])
    highest = [max(line) or 1.0 for line in shares]
    return {(y, x): share / highest[y] for y, line in enumerate(shares) for x, share in enumerate(line) if share}


def _shaded(facts: Mapping[str, Any], name: str) -> list[list[str]]:
    """Return the cells of a matrix, in which weak positives have their own mark."""
    cells = [list(line) for line in facts["matrix"][name]]
    depth = shade_positives(facts) if name == "unicl" else {}
    for (y, x), share in depth.items():
        if cells[y][x] == POSITIVE and share < 0.5:
            cells[y][x] = WEAK
    return cells


def batch_tables(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield both matrices, the counts of pairs, and some of the rows."""
    clip, unicl, n = facts["clip"], facts["unicl"], len(facts["shown"])
    titles = {"clip": "CLIP's targets", "unicl": "UniCL's targets"}
    panels = [
        Panel(Matrix(_shaded(facts, name)), title=title, width=max(n + 4, len(title) + 6), padding=(0, 1))
        for name, title in titles.items()
    ]
    yield SideBySide(panels)
    table = make_table(f"Batch at step {facts['step']}: {describe_rows(facts)}", ("pairs",), ("CLIP", "UniCL"))
    table.add_row("positives", f"{clip['positives']:,}", f"{unicl['positives']:,}")
    if unicl["hidden"]:
        table.add_row("prompts of groups not annotated for a row, hidden", "0", f"{unicl['hidden']:,}")
    table.add_row("same class or row, treated as negatives", f"{clip['false_negatives']:,}", "0")
    same = f"{unicl['same_text_other_key']:,}"
    table.add_row("same text without a common class, treated as negatives", same, same)
    naming = f"{unicl['captions_naming_the_class']:,}"
    table.add_row("caption and the class it names, treated as negatives", naming, naming)
    table.add_row("false negatives per image", f"{clip['per_anchor']:.2f}", "")
    yield table
    yield rows_table(facts)


def describe_rows(facts: Mapping[str, Any]) -> str:
    """Return the number of rows of a batch in words, with those that show two texts or do not count."""
    words = count_of(facts["batch_size"], "row")
    if facts["second_texts"]:
        words += f", {count_of(facts['second_texts'], 'row')} with a second text"
    if facts["rows_left_out"]:
        words += f", {count_of(facts['rows_left_out'], 'prompt')} of weight 0 left out"
    return words


def rows_table(facts: Mapping[str, Any]) -> Table:
    kinds = f"{facts['label_rows']:,} with a label, {facts['caption_rows']:,} without"
    table = make_table(f"Rows: {kinds}, {facts['distinct_texts']:,} distinct texts", ("class", "text"), ("positives",))
    for row in facts["shown"][:MAX_LISTED]:
        table.add_row(", ".join(row["classes"]) or "-", row["text"], str(row["positives"]))
    if len(facts["shown"]) > MAX_LISTED:
        table.add_row("…", f"{len(facts['shown']) - MAX_LISTED} more in the matrices above", "")
    return table


class SideBySide:
    """Panels side by side, or one below the other if the terminal is too narrow."""

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
