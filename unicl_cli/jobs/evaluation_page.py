"""HTML page of `unicl eval`: metrics, recall per class, confusion pairs, and the most confident mistakes as images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unicl_cli.data.corpus import Corpus
from unicl_cli.data.pictures import ImageError, decode
from unicl_cli.evaluate.statistics import wilson
from unicl_cli.evaluate.tables import describe_trained_classes
from unicl_cli.formats import interval, label_figure, percent
from unicl_cli.pages import html
from unicl_cli.pages.html import Html, section, tag

if TYPE_CHECKING:
    from unicl_cli.jobs.evaluators.kept import AnswerColumns

MISTAKES, PAIRS, CLASSES = 24, 20, 60
"""Mistakes, confusion pairs and classes that the page shows of one data set."""
SIDE, THUMB = 160, 64
"""Largest side of an image, and of one in a table, in pixels."""
RECALLS = ("r1", "r5", "r10")


class Mistake(NamedTuple):
    """A row that is not answered with its own class."""

    key: str
    label: str
    predicted: str
    confidence: float


class RowImages:
    """Thumbnails of the rows with labels of a split, by key."""

    def __init__(self, corpus: Corpus, split: str) -> None:
        self._table = corpus.table(split, "labels")
        self._rows = {key: row for row, key in enumerate(self._table.column("key").to_pylist())}

    def uri(self, key: str, side: int) -> str:
        """Return the image of a row as a data URI: the page is one file."""
        try:
            return html.data_uri(decode(self._table.read(self._rows[key]).image), side)
        except ImageError:
            return html.NOTHING


def evaluation_page(document: Mapping[str, Any], kept: Sequence[AnswerColumns], corpora: Sequence[Corpus]) -> str:
    """Return the page of a document of `unicl eval`; ``kept`` are the answers to its entries with labels, in order."""
    opened = {corpus.checksum: corpus for corpus in corpora}
    answers = iter(kept)
    parts: list[Html] = []
    if document.get("warnings"):
        parts.append(section("Warnings", html.bullet_list(document["warnings"])))
    for entry in document["data"]:
        if len(document["data"]) > 1:
            parts.append(tag("h2", f"{entry['name']} {entry['split']}"))
        parts += entry_figures(entry)
        if "top1" in entry:
            own = next(answers)
            if entry["top1"] is not None:  # there is no accuracy where a single class can be answered
                parts += answer_sections(entry, own, RowImages(opened[entry["checksum"]], entry["split"]))
        if entry.get("map") is not None:
            parts += label_set_sections(entry)
        parts += [evaluator_section(name, figures) for name, figures in entry.get("evaluators", {}).items()]
    lead = " · ".join(f"{entry['name']} {entry['split']}" for entry in document["data"])
    footer = tag("footer", f"unicl eval {document['model']}")
    return html.build_page(f"Evaluation of {document['model']}", lead, *parts, footer)


def entry_figures(entry: Mapping[str, Any]) -> Iterator[Html]:
    """Yield the main metrics of one data set, its warnings, and its recalls in retrieval."""
    named = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "map": "mAP"}
    tiles: list[tuple[str, object]] = [
        (words, with_interval(entry, name, " %")) for name, words in named.items() if entry.get(name) is not None
    ]
    plain = (name for name in ("map_micro", "f1_macro", "f1_micro") if name in entry)
    tiles += [(label_figure(name), f"{percent(entry[name])} %") for name in plain]
    if "lca_distance" in entry:
        tiles.append(("steps to the common ancestor", f"{entry['lca_distance']:.2f}"))
    found = entry.get("retrieval", {})
    tiles += [
        (f"{way.replace('_', ' ')} R@1", with_interval(found[way], "r1", " %"))
        for way in ("text_to_image", "image_to_text")
        if way in found
    ]
    if "classes" in entry:
        tiles.append(("classes", f"{entry['classes']:,}"))
    if "n" in entry:
        tiles.append(("images", f"{entry['n']:,}"))
    if left_out := entry.get("duplicates_of_eval"):
        tiles.append(("kept out of training", f"{left_out['same'] + left_out['near']:,}"))
    yield html.numbers(tiles)
    if line := describe_trained_classes(entry):
        yield tag("p", line)
    if entry.get("warnings"):
        yield section("Warnings", html.bullet_list(entry["warnings"]))
    if found:
        rows = [
            (way.replace("_", " "), f"{found[queries]:,}", *(with_interval(found[way], k) for k in RECALLS))
            for way, queries in (("text_to_image", "texts"), ("image_to_text", "images"))
        ]
        yield section("Retrieval, %", html.table(("direction", "queries", "R@1", "R@5", "R@10"), rows))


def label_set_sections(entry: Mapping[str, Any]) -> Iterator[Html]:
    """Yield the metrics of groups and ranks, and the average precision of each class, the lowest first."""
    groups = [
        (name, f"{own['classes']:,}", with_interval(own, "map"), with_interval(own, "top1") if "top1" in own else "")
        for name, own in entry.get("per_group", {}).items()
    ]
    if groups:
        yield section("Groups of classes, %", html.table(("group", "classes", "mAP", "top-1"), groups))
    ranks = [(name, f"{own['n']:,}", with_interval(own, "top1")) for name, own in entry.get("per_rank", {}).items()]
    if ranks:
        note = "The answer at a rank has the largest sum of the probabilities of the leaves below it."
        yield section("Ranks of the taxonomy, %", html.table(("rank", "images", "top-1"), ranks), note=note)
    classes = sorted(entry["per_class"], key=lambda row: (row["ap"], row["class"]))
    shown = classes[:CLASSES]
    bars = [(row["class"], row["ap"], f"{percent(row['ap'])} · {row['n']:,} of {row['annotated']:,}") for row in shown]
    note = "The lowest first, with the number of images that have the class, of those annotated for it."
    if len(classes) > len(shown):
        note = f"The {len(shown)} lowest of {len(classes):,} classes. {note}"
    yield section("Average precision per class, %", html.bar_chart(bars, full=1.0), note=note)


def with_interval(figures: Mapping[str, Any], name: str, unit: str = "") -> Html:
    """Return a share in percent with its 95 % interval in small print."""
    return html.join_markup((percent(figures[name]), unit, tag("small", interval(figures[f"{name}_interval"]))))


def answer_sections(entry: Mapping[str, Any], answers: AnswerColumns, images: RowImages) -> Iterator[Html]:
    """Yield what was answered wrongly, then the recall per class and source, and the calibration."""
    mistakes = find_mistakes(answers)
    if mistakes:
        yield pairs_section(entry, answers, mistakes, images)
        yield mistakes_section(mistakes, images)
    yield classes_section(entry)
    if len(entry["per_source"]) > 1:
        rows = [(source, f"{row['n']:,}", with_interval(row, "top1")) for source, row in entry["per_source"].items()]
        yield section("Per source, %", html.table(("source", "images", "top-1"), rows))
    yield calibration_section(entry)


def find_mistakes(answers: AnswerColumns) -> list[Mistake]:
    """Return the rows that are answered wrongly, the most confident answer first."""
    columns = (answers[name] for name in ("key", "class", "predicted", "p_max", "correct"))
    wrong = [Mistake(*row[:4]) for row in zip(*columns, strict=True) if not row[4]]
    return sorted(wrong, key=lambda mistake: (-mistake.confidence, mistake.key))


def pairs_section(
    entry: Mapping[str, Any], answers: AnswerColumns, mistakes: Sequence[Mistake], images: RowImages
) -> Html:
    """Return the pairs of classes that are confused most, each with its most confident mistake."""
    counts = Counter((mistake.label, mistake.predicted) for mistake in mistakes)
    first: dict[tuple[str, str], str] = {}
    for mistake in mistakes:
        first.setdefault((mistake.label, mistake.predicted), mistake.key)
    rows_of = Counter(answers["class"])
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:PAIRS]
    rows = [
        (thumbnail(images.uri(first[pair], THUMB)), *pair, f"{count:,}", f"{percent(count / rows_of[pair[0]])}")
        for pair, count in shown
    ]
    head = ("", "class", "answered", "images", "% of the class")
    note = f"{len(mistakes):,} of {entry['n']:,} images are classified as another class, in {len(counts):,} pairs."
    if len(counts) > len(shown):
        note += f" The {len(shown)} most frequent pairs are shown."
    return section("Confusion pairs", html.table(head, rows, left=3), note=note)


def thumbnail(uri: str) -> Html:
    return Html(f'<img src="{html.text(uri)}" alt="" loading="lazy">')


def mistakes_section(mistakes: Sequence[Mistake], images: RowImages) -> Html:
    shown = mistakes[:MISTAKES]
    wall = html.image_wall(
        (
            images.uri(mistake.key, SIDE),
            f"{mistake.predicted}, {percent(mistake.confidence)} %",
            f"labelled {mistake.label} · {mistake.key}",
        )
        for mistake in shown
    )
    note = f"The {len(shown)} most confident wrong predictions. Check their labels first: they may be wrong."
    return section("Most confident mistakes", wall, note=note)


def classes_section(entry: Mapping[str, Any]) -> Html:
    """Return the recall of each class as bars, the lowest first."""
    recalls = [row for row in entry["per_class"] if "recall" in row]
    classes = sorted(recalls, key=lambda row: (row["recall"], row["class"]))
    shown = classes[:CLASSES]
    bars = [(row["class"], row["recall"], recall_text(row)) for row in shown]
    note = "The lowest first, with the number of images and the 95 % interval."
    if len(classes) > len(shown):
        note = f"The {len(shown)} lowest of {len(classes):,} classes, with the number of images and the 95 % interval."
    return section("Recall per class, %", html.bar_chart(bars, full=1.0), note=note)


def recall_text(row: Mapping[str, Any]) -> str:
    bounds = wilson(round(row["recall"] * row["n"]), row["n"])
    return f"{percent(row['recall'])} ({interval(bounds)}) of {row['n']:,}"


def calibration_section(entry: Mapping[str, Any]) -> Html:
    rows = [
        (
            f"{percent(part['low'])}–{percent(part['high'])}",
            f"{part['n']:,}",
            *(percent(part[name]) for name in ("confidence", "accuracy")),
        )
        for part in entry["reliability"]
    ]
    note = f"Expected calibration error {percent(entry['ece'])} %: the mean distance between the last two columns."
    return section("Calibration, %", html.table(("confidence", "images", "mean", "correct"), rows), note=note)


def evaluator_section(name: str, figures: Mapping[str, Any]) -> Html:
    """Return the metrics of another evaluator; longer values are only in the JSON."""
    rows = [
        (key, f"{value:.4g}" if isinstance(value, float) else value)
        for key, value in figures.items()
        if isinstance(value, int | float | str)
    ]
    return section(name, html.table(("metric", "value"), rows))
