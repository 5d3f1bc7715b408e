"""Label sets in the reports of `prepare`: the labels of a row, and the groups of classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from unicl_cli.jobs.prepare.shards.parts import PartMarker
from unicl_cli.pages.text import shorten

SHOWN, LONGEST = 10, 40
"""Groups of classes that the closing table names, and the most characters of each."""


def count_set_sizes(markers: Sequence[PartMarker]) -> Counter[int]:
    """Return the rows of finished units by their number of labels; nothing for a corpus without label sets."""
    sizes: Counter[int] = Counter()
    for marker in markers:
        sizes.update({int(count): rows for count, rows in (marker.set_sizes or {}).items()})
    return sizes


def describe_sizes(sizes: Mapping[int, int]) -> dict[str, dict[str, float]]:
    """Return the least, mean and most labels of a row as `--json` prints them; nothing without rows."""
    if not sizes:
        return {}
    mean = sum(count * rows for count, rows in sizes.items()) / sum(sizes.values())
    return {"labels_per_row": {"min": min(sizes), "mean": round(mean, 4), "max": max(sizes)}}


def describe_sets(groups: Sequence[str] | None, sizes: Mapping[int, int]) -> dict[str, Any]:
    """Return the facts on label sets as `--json` prints them; nothing for a corpus without label sets."""
    return {} if groups is None else {"groups": list(groups), **describe_sizes(sizes)}


def format_sets(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of the closing table on label sets."""
    if "labels_per_row" not in report:
        return []
    of, groups = report["labels_per_row"], [shorten(group, LONGEST) for group in report["groups"] if group]
    lines = [f"labels per row: {of['min']:,} to {of['max']:,}, mean {of['mean']:.2f}"]
    if groups:
        more = f", … ({len(groups)})" if len(groups) > SHOWN else ""
        lines.append(f"groups of classes: {', '.join(groups[:SHOWN])}{more}")
    return lines
