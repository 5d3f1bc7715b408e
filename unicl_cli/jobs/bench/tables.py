"""A benchmark's document as a table of 80 columns, and the table of kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from unicl_cli.formats import count_of, format_share
from unicl_cli.jobs.bench.kinds import KINDS

HEAD = ("row", "variant", "ms", "per s", "MiB", "speed (range)")
WORDS = 2
"""Columns of text, before those of results."""
OPTIONAL = ("MiB", "speed (range)")
"""Columns that are left out if they have no value."""
SLOW_FIRST_STEP = 60.0
"""Seconds from which a first step gets a line."""


def tables(document: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the machine, the table of rows, and below it the notes."""
    yield heading(document)
    lines = [list(row_cells(row)) for row in document["rows"]]
    shown = [n for n, name in enumerate(HEAD) if name not in OPTIONAL or any(cells[n] for of in lines for cells in of)]
    table = Table()
    for n in shown:
        justify, no_wrap = ("left", n == 0) if n < WORDS else ("right", True)
        table.add_column(HEAD[n], justify=justify, no_wrap=no_wrap)
    for of in lines:
        for cells in of:
            table.add_row(*(cells[n] for n in shown))
        table.add_section()
    yield table
    yield from iter_notes(document)


def row_cells(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield one line per variant; the row's name and its text counts are in the first two."""
    firsts = [row["name"], text_counts(row)]
    alone = len(row["variants"]) == 1
    for number, (variant, own) in enumerate(row["variants"].items()):
        first = firsts[number] if number < len(firsts) else ""
        if alone:
            speed = ""
        elif variant == row["reference"]:
            speed = "1"
        else:
            speed = format_speed(own.get("speed"))
        yield first, variant, *variant_cells(own), speed


def heading(document: Mapping[str, Any]) -> str:
    """Return the machine, the versions and the date in two lines."""
    where, versions = document["machine"], document["versions"]
    device = where["gpu"] or count_of(document["threads"], "thread")
    first = f"{where['processor']}, {count_of(where['cores'], 'core')}, {device}, load {where['load_before']:g}"
    second = f"torch {versions['torch'].partition('+')[0]}, open_clip {versions['open_clip_torch']}, {document['date']}"
    return f"{first}\n{second}"


def variant_cells(own: Mapping[str, Any]) -> tuple[str, str, str]:
    mib = "" if own["mib"] is None else f"{own['mib']:,.0f}"
    return format_short(own["median_s"] * 1000), format_short(own["per_s"]), mib


def format_speed(speed: Mapping[str, float] | None) -> str:
    """Return ``median (low–high)``, or nothing if the reference did not run."""
    return (
        ""
        if speed is None
        else f"{format_short(speed['median'])} ({format_short(speed['low'])}–{format_short(speed['high'])})"
    )


def format_short(value: float) -> str:
    """Return the number with three significant digits."""
    if value >= 100:
        return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"
    return f"{value:.3g}" if value < 1 else f"{value:#.3g}"


def text_counts(row: Mapping[str, Any]) -> str:
    """Return the number of texts and of their tokens, where the row has them."""
    facts = row["facts"]
    if "tokens" in facts:
        return f" {count_of(facts['texts'], 'text')} of {facts['tokens']:,}"
    return f" {count_of(facts['texts'], 'text')}" if "texts" in facts else ""


def iter_notes(document: Mapping[str, Any]) -> Iterator[str]:
    references = {row["reference"] for row in document["rows"] if len(row["variants"]) > 1}
    if references:
        reference = references.pop() if len(references) == 1 else "the row's reference (1)"
        rounds = document["rounds"]
        yield f"speed: ratio to {reference} in the same round; median of {count_of(rounds, 'round')} (range)"
    clock = document["clock"]
    yield f"ms: {clock}"
    yield from (f"{row['name']}: ms is {row['facts']['clock']}" for row in document["rows"] if "clock" in row["facts"])
    yield f"command: {document['command']}"
    for row in document["rows"]:
        if "first_s" in row["checks"] and row["checks"]["first_s"] >= SLOW_FIRST_STEP:
            yield f"{row['name']}: the first forward and backward took {row['checks']['first_s']:.0f} s"
        for variant, share in row["facts"].get("waited", {}).items():
            yield f"{row['name']} {variant}: {format_share(share)} of the time was spent waiting for data"
        for variant, reason in row["skipped"].items():
            yield f"{row['name']}: {variant} was skipped: {reason}"
    if not document["complete"]:
        yield "stopped early: the remaining rows are missing"


def kinds_table() -> Table:
    """Return the table of kinds that `unicl bench` shows without a kind."""
    table = Table()
    for name in ("kind", "measures", "--vs open_clip", "RECIPE"):
        table.add_column(name)
    for name, kind in KINDS.items():
        table.add_row(name, kind.line, "yes" if kind.peer else "", "yes" if kind.recipe else "")
    return table
