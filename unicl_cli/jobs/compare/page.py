"""HTML page of `unicl compare`: the tables, and images that only one of two models classifies correctly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unicl_cli.data.corpus import open_corpus
from unicl_cli.formats import interval, percent
from unicl_cli.jobs.compare.compare import Comparison
from unicl_cli.jobs.compare.names import letters, short_names
from unicl_cli.jobs.compare.tables import (
    NAMES,
    by_difference,
    class_figure_name,
    figure_groups,
    figures_of,
    p_value,
    points,
    share_cells,
)
from unicl_cli.jobs.evaluation_page import SIDE, RowImages
from unicl_cli.pages import html
from unicl_cli.pages.html import Html, section, tag
from unicl_cli.storage.json_output import format_json

if TYPE_CHECKING:
    from unicl_cli.jobs.evaluators.kept import AnswerColumns

IMAGES, CLASSES = 12, 100
"""Images that only one of two models classifies correctly, and classes, on the page."""


class Disagreement(NamedTuple):
    """A row that model ``right`` classifies correctly and model ``wrong`` does not."""

    key: str
    label: str
    right: tuple[str, float]
    wrong: tuple[str, float]


def comparison_page(compared: Comparison) -> str:
    """Return the page of a comparison; images are read from its corpora."""
    document = compared.document
    models: Sequence[str] = document["models"]
    opened = {corpus.checksum: corpus for corpus in map(open_corpus, map(Path, compared.corpora))}
    parts: list[Html] = []
    if document.get("warnings"):
        parts.append(section("Warnings", html.bullet_list(document["warnings"])))
    for entry, measured in zip(document["data"], compared.measured, strict=True):
        parts += entry_sections(models, entry)
        if "per_class" in entry:
            images = RowImages(opened[entry["checksum"]], entry["split"])
            parts += image_sections(models, [each.answers for each in measured], images)
    if document["recipes"]:
        parts.append(recipes_section(models, document["recipes"]))
    lead = " · ".join(f"{letter} {name}" for letter, name in zip(letters(models), models, strict=True))
    footer = tag("footer", f"unicl compare {' '.join(models)}")
    return html.build_page(f"Comparison of {len(models)} models", lead, *parts, footer)


def entry_sections(models: Sequence[str], entry: Mapping[str, Any]) -> Iterator[Html]:
    """Yield the metrics of one data set, the differences from the first model, and the recall per class."""
    rows = [figures_of(row) for row in entry["models"]]
    for title, present in figure_groups(entry):
        body = [
            (f"{letter} {name}", *(share_cell(row[key]) if key in row else "" for key in present))
            for letter, name, row in zip(letters(models), short_names(models), rows, strict=True)
        ]
        table = html.table(("model", *(NAMES[name] for name in present)), body)
        yield section(title, table, note="Below each value is its 95 % interval.")
    if entry.get("warnings"):
        yield section("Warnings", html.bullet_list(entry["warnings"]))
    if entry["differences"]:
        yield differences_section(models, entry)
    if "per_class" in entry:
        classes = by_difference(entry["per_class"])
        shown = [(row["class"], f"{row['n']:,}", *share_cells(row)) for row in classes[:CLASSES]]
        note = f"{len(classes):,} of {len(entry['per_class']):,} classes differ; the clearest difference comes first."
        if shown:
            title = f"{class_figure_name(entry)} per class, %"
            yield section(title, html.table(("class", "images", *letters(models)), shown), note=note)


def share_cell(figure: tuple[float, Sequence[float]]) -> Html:
    return html.join_markup((percent(figure[0]), tag("small", interval(figure[1]))))


def differences_section(models: Sequence[str], entry: Mapping[str, Any]) -> Html:
    letter_of = dict(zip(models, letters(models), strict=True))
    several = len(models) > 2
    rows = [
        (
            f"{letter_of[row['model']]} − A",
            NAMES[row["figure"]],
            html.join_markup(
                (points(row["difference"]), tag("small", " … ".join(points(bound) for bound in row["interval"])))
            ),
            *(f"{row[key]:,}" for key in ("n", "better", "worse")),
            *(p_value(row[key]) for key in (("p", "p_holm") if several else ("p",))),
        )
        for row in entry["differences"]
    ]
    head = ("", "metric", "points", "items", "better", "worse", "p", *(["p, Holm"] if several else []))
    note = (
        "Percentage points with 95 % intervals. Better and worse count the images with more and with fewer hits than "
        "those of A; p is the exact paired test (McNemar). Of mAP they count classes, and p is that of a normal test."
    )
    dots = [
        (
            f"{letter_of[row['model']]} − A, {NAMES[row['figure']]}",
            row["difference"],
            (row["interval"][0], row["interval"][1]),
            points(row["difference"]),
        )
        for row in entry["differences"]
    ]
    return section("Difference from A", html.interval_chart(dots), html.table(head, rows, left=2), note=note)


def image_sections(models: Sequence[str], answers: Sequence[AnswerColumns | None], images: RowImages) -> Iterator[Html]:
    """Yield for each other model the images that it alone, or the first alone, classifies correctly."""
    names = letters(models)
    first = answers[0]
    for letter, other in zip(names[1:], answers[1:], strict=True):
        if first is None or other is None:
            continue
        for right, wrong, pair in ((letter, "A", (other, first)), ("A", letter, (first, other))):
            found = find_disagreements(*pair)
            if found:
                yield disagreement_section(right, wrong, found, images)


def find_disagreements(right: AnswerColumns, wrong: AnswerColumns) -> list[Disagreement]:
    """Return the rows that only the first classifies correctly: of each class in turn, the most confident one."""
    names = ("predicted", "p_max", "correct")
    columns = (right["key"], right["class"], *(own[name] for own in (right, wrong) for name in names))
    found = [
        Disagreement(key, label, (first, sure), (second, unsure))
        for key, label, first, sure, hit, second, unsure, missed in zip(*columns, strict=True)
        if hit and not missed
    ]
    found.sort(key=lambda split: (-split.right[1], split.key))
    turns: Counter[str] = Counter()
    ordered: list[tuple[int, Disagreement]] = []
    for split in found:
        ordered.append((turns[split.label], split))
        turns[split.label] += 1
    return [split for _, split in sorted(ordered, key=lambda pair: pair[0])]


def disagreement_section(right: str, wrong: str, found: Sequence[Disagreement], images: RowImages) -> Html:
    wall = html.image_wall(
        (
            images.uri(split.key, SIDE),
            split.label,
            f"{right} {percent(split.right[1])} % · {wrong} {split.wrong[0]}, {percent(split.wrong[1])} %",
        )
        for split in found[:IMAGES]
    )
    note = f"{len(found):,} images. One per class in turn, where {right} is most confident."
    return section(f"Right by {right}, wrong by {wrong}", wall, note=note)


def recipes_section(models: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> Html:
    rows = [(row["key"], *("–" if v is None else format_json(v) for v in row["values"])) for row in changes]
    head = ("key", *letters(models))
    return section("Recipe keys that differ", html.table(head, rows, left=len(head)))
