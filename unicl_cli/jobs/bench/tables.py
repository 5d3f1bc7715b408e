"""A benchmark's document as a table of 80 columns, and the list of the kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from unicl_cli.jobs.bench.kinds import KINDS

SLOW_FIRST_STEP = 60.0
"""Seconds of a first step from which it is worth a line."""


def tables(document: Mapping[str, Any]) -> Iterator[Any]:
    """One table; what ran, where and when stands above it, the command and what was left out below."""
    yield heading(document)
    table = Table(pad_edge=False)
    for name, numeric in (("row", False), ("who", False), ("ms", True), ("per s", True), ("MiB", True)):
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != "who")
    table.add_column("speed (range)", justify="right", no_wrap=True)
    for row in document["rows"]:
        for number, (who, own) in enumerate(row["variants"].items()):
            first = f"{row['name']}" if number == 0 else text_counts(row) if number == 1 else ""
            speed = (
                ""
                if len(row["variants"]) == 1
                else "1"
                if variants == row["reference"]
                else format_speed(own.get("speed"))
            )
            table.add_row(first, who, *variant_cells(own), speed, end_section=number == len(row["variants"]) - 1)
    yield table
    yield from write_notes(document)


def heading(document: Mapping[str, Any]) -> str:
    """Two lines that fit."""
    where, versions = document["machine"], document["versions"]
    device = where["gpu"] or f"{document['threads']} thread{'s' * (document['threads'] > 1)}"
    first = f"{where['processor']}, {where['cores']} cores, {device}, load {where['load_before']:g}"
    second = f"torch {versions['torch'].partition('+')[0]}, open_clip {versions['open_clip_torch']}, {document['date']}"
    return f"{first}\n{second}"


def variant_cells(own: Mapping[str, Any]) -> tuple[str, str, str]:
    mib = "" if own["mib"] is None else f"{own['mib']:,.0f}"
    return format_short(own["median_s"] * 1000), format_short(own["per_s"]), mib


def format_speed(speed: Mapping[str, float] | None) -> str:
    """Nothing where the reference did not run."""
    return (
        ""
        if speed is None
        else f"{format_short(speed['median'])} ({format_short(speed['low'])}–{format_short(speed['high'])})"
    )


def format_short(value: float) -> str:
    """Three digits, whatever the size."""
    if value >= 100:
        return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"
    return f"{value:.3g}" if value < 1 else f"{value:#.3g}"


def text_counts(row: Mapping[str, Any]) -> str:
    """What a reader wants to know of the data, in one cell."""
    facts = row["facts"]
    if "tokens" in facts:
        return f" {facts['texts']} texts of {facts['tokens']}"
    return f" {facts['texts']} texts" if "texts" in facts else ""


def write_notes(document: Mapping[str, Any]) -> Iterator[str]:
    references = {row["reference"] for row in document["rows"] if len(row["variants"]) > 1}
    if references:
        reference = references.pop() if len(references) == 1 else "the one with 1"
        yield f"speed: how many times as fast as {reference} in the same round, median of {document['rounds']}"
    clock = document["clock"]
    yield f"ms: {clock}; {document['command']}"
    for row in document["rows"]:
        if "first_s" in row["checks"] and row["checks"]["first_s"] >= SLOW_FIRST_STEP:
            yield f"{row['name']}: the first forward and backward took {row['checks']['first_s']:.0f} s"
        for who, share in row["facts"].get("waited", {}).items():
            yield f"{row['name']} {who}: {share:.1%} of the time waiting for data"
        for who, why in row["skipped"].items():
            yield f"{row['name']}: {who} was left out: {why}"
    if not document["complete"]:
        yield "stopped before the end"


def kinds_table() -> Table:
    """What `unicl bench` alone shows."""
    table = Table(pad_edge=False)
    for name in ("kind", "measures", "--vs open_clip", "RECIPE"):
        table.add_column(name)
    for name, kind in KINDS.items():
        table.add_row(name, kind.line, "yes" if kind.peer else "", "yes" if kind.recipe else "")
    return table
