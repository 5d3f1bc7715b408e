"""Terminal tables of `unicl compare`: a row per model, differences from the first, classes, keys of the recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

from rich.table import Table

from unicl_cli.evaluate.tables import count_classes, make_table
from unicl_cli.formats import interval, percent
from unicl_cli.jobs.compare.names import letters, short_names
from unicl_cli.storage.json_output import format_json

NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "per class",
    "map": "mAP",
    "text_to_image_r1": "text to image R@1",
    "image_to_text_r1": "image to text R@1",
}
"""Metrics as people read them."""
CLASSIFIED = ("top1", "top5", "mean_per_class", "map")
PER_CLASS = {"recall": "Recall", "ap": "Average precision"}
"""Metrics of classes."""
SHOWN_CLASSES, SHOWN_KEYS = 10, 20
WIDEST = 28
"""Characters of a recipe's value in a table."""


def compare_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of a document of `unicl compare`; metrics in percent."""
    models: Sequence[str] = document["models"]
    for entry in document["data"]:
        yield from figures_tables(entry)
        if entry["differences"]:
            yield differences_table(models, entry)
        if "per_class" in entry:
            yield classes_table(models, entry)
    if document["recipes"]:
        yield recipes_table(models, document["recipes"])


def figures_tables(entry: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table of classification and one of retrieval, with a row per model."""
    models = [row["model"] for row in entry["models"]]
    rows = [figures_of(row) for row in entry["models"]]
    for title, present in figure_groups(entry):
        table = make_table(title, ("model",), [f"{NAMES[name]}\n95 %" for name in present])
        for letter, name, row in zip(letters(models), short_names(models), rows, strict=True):
            cells = [f"{percent(row[key][0])}\n{interval(row[key][1])}" if key in row else "" for key in present]
            table.add_row(f"{letter} {name}", *cells)
        yield table


def figure_groups(entry: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the title and the metrics of classification and of retrieval, each if a model has it."""
    known = {name for row in entry["models"] for name in figures_of(row)}
    where = f"{entry['name']} {entry['split']}"
    first = next((row for row in entry["models"] if "classes" in row), None)
    if first is not None:
        title = f"Classification, % · {where} · {first['n']:,} images, {count_classes(first)} classes"
        present = [name for name in CLASSIFIED if name in known]
        if present:  # none with a single candidate
            yield title, present
    found = next((row["retrieval"] for row in entry["models"] if "retrieval" in row), None)
    if found is not None:
        title = f"Retrieval, % · {where} · {found['images']:,} images, {found['texts']:,} texts"
        yield title, [name for name in NAMES if name not in CLASSIFIED]


def figures_of(row: Mapping[str, Any]) -> dict[str, tuple[float, Sequence[float]]]:
    """Return share and interval of each metric of a model, by its name in ``NAMES``."""
    flat = dict(row)
    for way in ("text_to_image", "image_to_text"):
        for key, value in row.get("retrieval", {}).get(way, {}).items():
            flat[f"{way}_{key}"] = value
    return {name: (flat[name], flat[f"{name}_interval"]) for name in NAMES if flat.get(name) is not None}


def differences_table(models: Sequence[str], entry: Mapping[str, Any]) -> Table:
    """Return the differences from the first model in percentage points, with the discordant pairs and the test."""
    title = f"Difference from A, points · {entry['name']} {entry['split']}"
    several = len(models) > 2
    head = ("points\n95 %", "n", "better", "worse", "p\nHolm" if several else "p")
    table = make_table(title, ("", "metric"), head)
    table.columns[0].no_wrap = True
    letter_of = dict(zip(models, letters(models), strict=True))
    for row in entry["differences"]:
        low, high = row["interval"]
        table.add_row(
            f"{letter_of[row['model']]} − A",
            NAMES[row["figure"]],
            f"{points(row['difference'])}\n{points(low)} … {points(high)}",
            *(f"{row[key]:,}" for key in ("n", "better", "worse")),
            "\n".join(p_value(row[key]) for key in (("p", "p_holm") if several else ("p",))),
        )
    return table


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def by_difference(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the classes in which the models differ, the clearest difference first.

    The difference of recalls (or of average precisions) counts times the square root of the rows: chance alone moves
    a class of one row by 100 points.
    """

    def clearness(row: Mapping[str, Any]) -> float:
        known = [share for share in class_shares(row) if share is not None]
        return (max(known, default=0) - min(known, default=0)) * sqrt(row["n"])

    return sorted((row for row in classes if clearness(row) > 0), key=lambda row: (-clearness(row), row["class"]))


def classes_table(models: Sequence[str], entry: Mapping[str, Any]) -> Table:
    title = f"{class_figure_name(entry)} of the classes that differ most, % · {entry['name']} {entry['split']}"
    table = make_table(title, ("class",), ("n", *letters(models)))
    differing = by_difference(entry["per_class"])
    for row in differing[:SHOWN_CLASSES]:
        table.add_row(row["class"], f"{row['n']:,}", *share_cells(row))
    more = len(entry["per_class"]) - min(len(differing), SHOWN_CLASSES)
    if more:
        table.add_row(f"… {more:,} more", "", *[""] * len(models))
    return table


def class_shares(row: Mapping[str, Any]) -> Sequence[float | None]:
    """Return the metric of a class for each model."""
    return next(row[name] for name in PER_CLASS if name in row)


def class_figure_name(entry: Mapping[str, Any]) -> str:
    """Return the name of the metric that an entry has of its classes."""
    return next(words for name, words in PER_CLASS.items() if name in entry["per_class"][0])


def share_cells(row: Mapping[str, Any]) -> list[str]:
    return ["" if share is None else percent(share) for share in class_shares(row)]


def recipes_table(models: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> Table:
    """Return the recipe keys that results depend on and that differ."""
    table = make_table("Recipe keys that differ", ("key", *letters(models)), ())
    for row in changes[:SHOWN_KEYS]:
        table.add_row(row["key"], *(shorten_value(value) for value in row["values"]))
    if len(changes) > SHOWN_KEYS:
        table.add_row(f"… {len(changes) - SHOWN_KEYS:,} more", *[""] * len(models))
    return table


def shorten_value(value: Any) -> str:
    """Return a recipe's value in one line; a dash for a key that is missing."""
    text = "–" if value is None else value if isinstance(value, str) else format_json(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
