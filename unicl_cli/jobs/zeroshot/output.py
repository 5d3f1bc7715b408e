"""The answers of `zeroshot` as text: a line or a CSV row per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unicl_cli.errors import UniclError, escape_control
from unicl_cli.formats import format_share
from unicl_cli.inference.answer_stream import Format, Row, csv_lines, format_error
from unicl_cli.jobs.zeroshot.questions import BETWEEN

if TYPE_CHECKING:
    from unicl_cli.jobs.zeroshot.answers import Judge
    from unicl_cli.jobs.zeroshot.label_sets import SetJudge

NONE = "none of these"
"""Shown for an image without a label."""
NO_GROUP = "(no group)"
"""Shown for the classes without a group where others have groups."""
SEPARATOR = ";"
"""Stands between the labels of a cell."""


class Layout(NamedTuple):
    """The shape of the rows: the ``names`` of classes, at most ``wanted`` in an answer, one answer for each group."""

    names: tuple[str, ...]
    wanted: int = 5
    groups: tuple[str, ...] = ()
    by_cosine: bool = False
    is_multi: bool = False
    has_paths: bool = False


class AnswerBlock(NamedTuple):
    """The answer of one group, a line of a table; ``group`` is None if the row has one answer."""

    group: str | None
    label: str | None
    items: Sequence[Row]


def choose_layout(judge: Judge | SetJudge) -> Layout:
    """Return the layout of a judge's rows."""
    names = tuple(item.names[0] for item in judge.classes)
    options = judge.options
    wanted = min(options.top_k, judge.most)
    return Layout(names, wanted, judge.groups, options.by_cosine, options.multi, judge.has_paths)


def split_row(row: Row, layout: Layout) -> list[AnswerBlock]:
    """Return the answers of a row: one, or one for each group."""
    if layout.is_multi:
        parts = [(group, [item for item in row["labels"] if (item["group"] or "") == group]) for group in layout.groups]
        return [AnswerBlock(group, items[0]["label"] if items else None, items) for group, items in parts] or [
            AnswerBlock(None, row["label"], row["labels"])
        ]
    if layout.groups:
        return [AnswerBlock(each["group"], each["label"], each["top"]) for each in row["groups"]]
    return [AnswerBlock(None, row["label"], row["top"])]


def text_lines(layout: Layout) -> Format:
    """Return the format ``path<TAB>cat 93.1 %<TAB>dog 5.0 %``, or with cosines ``path<TAB>cat 0.287``.

    With groups, each has its own line, ``path<TAB>colour<TAB>red 93.1 %<TAB>…``.
    """

    def form(rows: Sequence[Row]) -> str:
        return "".join(f"{line}\n" for row in rows for line in format_lines(row, layout))

    return form


def format_lines(row: Row, layout: Layout) -> list[str]:
    """Return the line of each answer, or of the error."""
    if row["error"] is not None:
        return [format_error(row)]
    lines: list[str] = []
    for block in split_row(row, layout):
        group = [] if block.group is None else [format_group(block.group)]
        none = [NONE] if block.label is None else []
        shown = (format_item(item, by_cosine=layout.by_cosine) for item in block.items)
        lines.append("\t".join([escape_control(row["path"]), *group, *none, *shown]))
    return lines


def format_group(group: str) -> str:
    return escape_control(group) or NO_GROUP


def format_item(item: Row, *, by_cosine: bool) -> str:
    """Return a class and its metric, or each class of a path with its own."""
    path = item.get("lineage", [item])
    return BETWEEN.join(f"{escape_control(each['label'])} {format_score(each, by_cosine=by_cosine)}" for each in path)


def format_score(item: Row, *, by_cosine: bool) -> str:
    return f"{item['cosine']:.3f}" if by_cosine else format_share(item["prob"])


def csv_header(layout: Layout) -> list[str]:
    """Return the names of the columns: for each group if there are groups, else for each of the best classes."""
    header = ["path", "label", "prob", "error"]
    if layout.is_multi:
        return header + ([f"labels_{group}" for group in layout.groups] or ["labels"])
    if layout.groups:
        return header + [f"{name}_{group}" for group in layout.groups for name in ("label", "prob")]
    facts = ("label", "prob", "cosine", *(["lineage"] if layout.has_paths else []))
    return header + [f"{name}_{place}" for place in range(1, layout.wanted + 1) for name in facts]


def csv_values(row: Row, layout: Layout) -> list[Any]:
    """Return the cells of a row after the first four."""
    blocks = split_row(row, layout)
    if layout.is_multi:
        return [SEPARATOR.join(item["label"] for item in block.items) or None for block in blocks]
    if layout.groups:
        return [cell for block in blocks for cell in (block.label, block.items[0]["prob"])]
    cells: list[Any] = []
    for item in row["top"]:
        cells += [item["label"], item["prob"], item["cosine"]]
        if layout.has_paths:
            cells.append(BETWEEN.join(each["label"] for each in item["lineage"]))
    return cells


def csv_rows(layout: Layout) -> Format:
    """Return the CSV format, with a header: see `csv_header`. Raises UniclError if labels cannot be separated."""
    split = next((name for name in layout.names if SEPARATOR in name), None)
    if layout.is_multi and split is not None:
        raise UniclError(f"--csv: class '{split}' contains '{SEPARATOR}', which separates labels", "use --json")

    def cells(row: Row) -> list[Any]:
        more = [] if row["error"] is not None else csv_values(row, layout)
        return [row["path"], row["label"], row["prob"], row["error"], *more]

    return csv_lines(csv_header(layout), cells)
