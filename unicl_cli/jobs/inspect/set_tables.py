"""Rows of the tables on label sets, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType

from unicl_cli.evaluate.tables import make_table
from unicl_cli.formats import count_of, format_share, list_first
from unicl_cli.jobs.inspect.corpus import count_bins
from unicl_cli.jobs.inspect.label_sets import MOST_PAIRED
from unicl_cli.jobs.inspect.run_tables import key_value_table
from unicl_cli.pages import html
from unicl_cli.pages.html import Html, section, tag

MOST_SIZES = 12
"""Sizes of label sets that are shown one by one; more of them are shown in bins."""
GROUP_HEAD = ("group", "classes", "annotated rows", "rows with a label", "labels")
PAIR_HEAD = ("label", "with", "rows", "lift")


def size_rows(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return (labels, rows) of the label sets by their size."""
    sizes = [(size["labels"], size["n"]) for size in found["sizes"]]
    if len(sizes) <= MOST_SIZES:
        return [(str(labels), n) for labels, n in sizes]
    bins = count_bins(np.repeat(*(np.array(column, np.int64) for column in zip(*sizes, strict=True))))
    return [(f"{each['low']}\u2013{each['high']}", each["n"]) for each in bins]


def tabulate_groups(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of groups; a corpus without groups has none."""
    if [each["group"] for each in found["groups"]] == [""]:
        return []
    keys = ("classes", "known", "rows", "labels")
    return [(each["group"] or "(no group)", *(f"{each[key]:,}" for key in keys)) for each in found["groups"]]


def pair_table_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of labels that meet."""
    return [(*each["classes"], f"{each['n']:,}", f"{each['lift']:.2f}") for each in found["co_occurrence"]["pairs"]]


def pair_title(found: Mapping[str, Any]) -> str:
    """Return the title of that table, which says if rows or classes were left out."""
    met, classes = found["co_occurrence"], sum(each["classes"] for each in found["groups"])
    title = "Labels that meet most often"
    if met["rows"] < found["rows"]:
        title += f" \u00b7 {met['rows']:,} of {count_of(found['rows'], 'row')}"
    if met["classes"] < classes and met["classes"] >= MOST_PAIRED:
        title += f" \u00b7 the {met['classes']:,} most frequent classes"
    return title


def taxonomy_rows(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of the taxonomy in words."""
    tree = found["taxonomy"]
    share = f" ({format_share(tree['rows_above_leaves'] / tree['rows'])})" if tree["rows"] else ""
    return {
        "classes": f"{tree['classes']:,}, {tree['inner']:,} of them above others",
        "depth": f"{tree['depth']}: {list_first(tree['ranks'])}",
        "roots": f"{tree['roots']:,}",
        "rows labelled above a leaf": f"{tree['rows_above_leaves']:,} of {tree['rows']:,}{share}",
    }


def set_tables(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the tables of the label sets of a corpus."""
    found, split = facts["label_sets"], facts["split"]
    sizes = make_table(f"Labels per row \u00b7 split {split}", ("labels",), ("rows",))
    for labels, n in size_rows(found):
        sizes.add_row(labels, f"{n:,}")
    yield sizes
    for title, head, left, rows in (
        (f"Groups of classes \u00b7 {count_of(found['rows'], 'label row')}", GROUP_HEAD, 1, tabulate_groups(found)),
        (pair_title(found), PAIR_HEAD, 2, pair_table_rows(found)),
    ):
        if rows:
            table = make_table(title, head[:left], head[left:])
            for row in rows:
                table.add_row(*row)
            yield table
    if "taxonomy" in found:
        yield key_value_table(f"Taxonomy \u00b7 split {split}", taxonomy_rows(found))


def set_sections(facts: Mapping[str, Any]) -> list[Html]:
    """Return the sections on label sets for the page of a corpus."""
    found = facts.get("label_sets")
    if not found:
        return []
    bars = [(labels, float(n), f"{n:,}") for labels, n in size_rows(found)]
    about = f"{count_of(found['rows'], 'label row')} of split {facts['split']}, {count_of(found['labels'], 'label')}."
    parts = [section("Labels per row", html.bar_chart(bars), note=about)]
    if "taxonomy" in found:
        parts.append(section("Taxonomy", html.table(("", ""), list(taxonomy_rows(found).items()), left=2)))
    wide = [
        (
            "Groups of classes",
            GROUP_HEAD,
            1,
            tabulate_groups(found),
            "A prompt of a group that a row is not annotated for is neither right nor wrong for it.",
        ),
        (
            pair_title(found),
            PAIR_HEAD,
            2,
            pair_table_rows(found),
            "Lift: how many times more rows have both labels than if they were independent.",
        ),
    ]
    parts += [section(title, html.table(head, rows, left=n), note=note) for title, head, n, rows, note in wide if rows]
    return [tag("div", *parts, class_="split")]
