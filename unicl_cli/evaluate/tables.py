"""Metrics for the JSON of `unicl eval` and `unicl probe`, and tables of them for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from unicl_cli.evaluate.metrics import mean_per_class, per_class, top_k
from unicl_cli.evaluate.statistics import mean_interval, wilson
from unicl_cli.formats import NOTHING, format_figure, interval, label_figure, percent, split_ends

SHOWN_ENDS = 10
"""Worst and best classes of a long table."""
ONE_CANDIDATE = "one candidate: every answer is right"


class AnswerableClasses(NamedTuple):
    """Classes to choose from: ``total`` of them, ``not_in_corpus`` of which no row can have."""

    total: int
    not_in_corpus: int = 0


def classification_figures(
    ranks: Tensor,
    targets: Tensor,
    names: Sequence[str],
    sources: Sequence[str],
    candidates: AnswerableClasses | None = None,
) -> dict[str, Any]:
    """Return the metrics of a classification from the ranks of the true classes, int64 (n,), and the targets.

    ``per_class`` leaves out classes without rows; ``top5`` needs six candidates: with fewer it is always 1. ``names``
    has C entries, ``sources`` n; ``candidates`` None means these C. With a single candidate every answer is right:
    there is no accuracy then, and ``reason`` says so.
    """
    found = AnswerableClasses(len(names)) if candidates is None else candidates
    is_open = found.total > 1
    hits = ranks == 0
    counts = per_class(hits, targets, len(names))
    facts: dict[str, Any] = {"n": len(ranks), "classes": len(names), "candidates": found._asdict()}
    facts |= accuracy_figures(hits, is_open=is_open)
    if found.total > 5:
        facts["top5"] = top_k(ranks, 5)
        facts["top5_interval"] = list(wilson(int((ranks < 5).sum()), len(ranks)))
    counted = zip(names, counts.rows.tolist(), counts.hits.tolist(), strict=True)
    present = [(name, n, right) for name, n, right in counted if n]
    bounds = mean_interval([right for *_, right in present], [n for _, n, _ in present])
    facts["mean_per_class"] = mean_per_class(counts) if is_open else None
    facts["mean_per_class_interval"] = list(bounds) if is_open else None
    facts["per_class"] = [
        {"class": name, "n": n, "recall": right / n if is_open else None} for name, n, right in present
    ]
    rows_of: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        rows_of.setdefault(source, []).append(row)
    facts["per_source"] = {
        source: {"n": len(rows), **accuracy_figures(hits[torch.tensor(rows)], is_open=is_open)}
        for source, rows in sorted(rows_of.items())
    }
    return facts if is_open else facts | {"reason": ONE_CANDIDATE}


def accuracy_figures(hits: Tensor, *, is_open: bool = True) -> dict[str, Any]:
    """Return the share of hits, bool (n,), and its 95 % Wilson interval; None for an answer that is not open."""
    if not is_open:
        return {"top1": None, "top1_interval": None}
    right, n = int(hits.sum()), len(hits)
    return {"top1": right / n, "top1_interval": list(wilson(right, n))}


def share_and_interval(figures: Mapping[str, Any], name: str) -> str:
    """Return a share in percent with its interval below; nothing if it is absent, a dash if there is none."""
    if figures.get(name) is None:
        return NOTHING if name in figures else ""
    return f"{percent(figures[name])}\n{interval(figures[f'{name}_interval'])}"


def eval_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `unicl eval`: data sets, recall per class and source, retrieval; metrics in percent."""
    labelled = [entry for entry in document["data"] if "top1" in entry]
    if labelled:
        yield classification_table(labelled, document["model"])
    with_sets = [entry for entry in document["data"] if "map" in entry]
    if with_sets:
        yield label_sets_table(with_sets, document["model"])
    for entry in document["data"]:
        yield from detail_tables(entry)
    searched = [entry for entry in document["data"] if "retrieval" in entry]
    if searched:
        yield retrieval_table(searched, document["model"])
    yield from evaluator_tables(document["data"])
    checked = [entry for entry in document["data"] if "duplicates_of_eval" in entry]
    if checked:
        yield left_out_table(checked)


def evaluator_tables(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield the metrics of the other evaluators."""
    for entry in entries:
        for name, figures in entry.get("evaluators", {}).items():
            if name == "cross-modal":
                yield from cross_modal_tables(entry, figures)
            else:
                yield evaluator_table(entry, name, figures)


def left_out_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows that `prepare --not-in` kept out of training for each data set."""
    title = "Rows kept out of training, for an image of the data"
    table = make_table(title, ("data", "split"), ("the same", "nearly the same"))
    table.add_column("not checked", overflow="fold")
    for entry in entries:
        found = entry["duplicates_of_eval"]
        counts = (f"{found['same']:,}", f"{found['near']:,}")
        table.add_row(entry["name"], entry["split"], *counts, ", ".join(found["unchecked"]) or "-")
    return table


def detail_tables(entry: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of one data set: its classes, groups and sources."""
    if entry.get("per_class"):
        yield class_table(entry)
    if entry.get("per_group") or entry.get("per_rank"):
        yield groups_table(entry)
    if len(entry.get("per_source", ())) > 1:
        yield source_table(entry)


def make_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, min_width=len(title) + 4)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def classification_table(entries: Sequence[Mapping[str, Any]], model: str) -> Table:
    title = f"Classification, % · {model}"
    table = make_table(title, ("data", "split"), ("n", "classes", "top-1\n95 %", "top-5\n95 %", "per class\n95 %"))
    for entry in entries:
        table.add_row(
            entry["name"],
            entry["split"],
            f"{entry['n']:,}",
            count_classes(entry),
            *(share_and_interval(entry, figure) for figure in ("top1", "top5", "mean_per_class")),
        )
    has_others = any(entry["candidates"]["not_in_corpus"] for entry in entries)
    caption_table(table, entries, *(["classes a + b: candidates of the corpus + others"] if has_others else []))
    return table


def describe_trained_classes(entry: Mapping[str, Any]) -> str:
    """Return the line of the report about classes that were trained with labels; empty without such a class.

    Weights that a model started from may have seen others: a report never says that a class was not trained.
    """
    found = entry.get("trained_classes", {})
    place = f"{entry['name']} {entry['split']}"
    said: list[str] = []
    if found.get("trained"):
        said.append(f"{found['trained']:,} of {found['classes']:,} classes were trained with labels: not zero-shot")
    if found.get("unchecked"):
        said.append(f"labels of {', '.join(found['unchecked'])} are not known: the corpus cannot be read")
    return f"{place}: {'; '.join(said)}" if said else ""


def caption_table(table: Table, entries: Sequence[Mapping[str, Any]], *more: str) -> None:
    """Set the lines below a table: what was trained with labels, and others."""
    lines = [*filter(None, map(describe_trained_classes, entries)), *more]
    if lines:
        table.caption = "\n".join(lines)


def count_classes(entry: Mapping[str, Any]) -> str:
    """Return the number of candidates: ``3``, or ``3 + 1`` if one of them is not a class of the corpus."""
    found = entry["candidates"]
    further = found["not_in_corpus"]
    return f"{found['total'] - further} + {further}" if further else str(found["total"])


def class_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the metrics of classes that any of the rows has, with their names; the first one sorts the classes."""
    words = {"ap": "AP", "f1": "F1", "recall": "recall"}
    return {name: shown for name, shown in words.items() if any(name in row for row in rows)}


def class_table(entry: Mapping[str, Any]) -> Table:
    """List all classes, or the worst and the best of many."""
    rows: list[Mapping[str, Any]] = list(entry["per_class"])
    figures = class_figures(rows)
    first = next(iter(figures))
    title = f"{figures[first][0].upper()}{figures[first][1:]} per class, % · {entry['name']} {entry['split']}"
    worst, hidden, best = split_ends(sorted(rows, key=lambda row: row.get(first) or 0), SHOWN_ENDS)
    if hidden:
        title = f"{title} · the {len(worst)} worst and {len(best)} best of {len(rows):,}"
    grouped = ["group"] if any("group" in row for row in rows) else []
    table = make_table(title, ("class", *grouped), ("n", *figures.values()))

    def add(row: Mapping[str, Any]) -> None:
        cells = [percent(row[name]) if name in row else "" for name in figures]
        table.add_row(row["class"], *(row.get(name, "") for name in grouped), f"{row['n']:,}", *cells)

    for row in worst if hidden else rows:
        add(row)
    if hidden:
        table.add_row(f"… {hidden:,} more between")
    for row in best:
        add(row)
    return table


def source_table(entry: Mapping[str, Any]) -> Table:
    title = f"Per source, % · {entry['name']} {entry['split']}"
    table = make_table(title, ("source",), ("n", "top-1", "95 %"))
    for source, row in entry["per_source"].items():
        table.add_row(source, f"{row['n']:,}", percent(row["top1"]), interval(row["top1_interval"]))
    return table


def label_sets_table(entries: Sequence[Mapping[str, Any]], model: str) -> Table:
    """Return mean average precision, F1 where there are thresholds, and the distance in a taxonomy."""
    optional = {"f1_macro": "F1\nmacro", "f1_micro": "F1\nmicro"}
    shown = {name: words for name, words in optional.items() if any(name in entry for entry in entries)}
    distance = any("lca_distance" in entry for entry in entries)
    right = ("n", "classes", "mAP\n95 %", "mAP\nmicro", *shown.values(), *(["steps\nto LCA"] if distance else ()))
    table = make_table(f"Label sets, % · {model}", ("data", "split"), right)
    for entry in entries:
        cells = [f"{entry['n']:,}", f"{entry['classes']:,}", share_and_interval(entry, "map")]
        cells += [percent(entry[name]) if name in entry else "" for name in ("map_micro", *shown)]
        cells += [f"{entry['lca_distance']:.2f}" if "lca_distance" in entry else ""] if distance else []
        table.add_row(entry["name"], entry["split"], *cells)
    files = dict.fromkeys(entry["thresholds"]["file"] for entry in entries if "thresholds" in entry)
    caption_table(table, entries, *([f"F1 at the thresholds of {', '.join(files)}"] if files else []))
    return table


def groups_table(entry: Mapping[str, Any]) -> Table:
    """List the groups of classes, and the ranks of a taxonomy with answers that are rolled up."""
    ranks, groups = entry.get("per_rank", {}), entry.get("per_group", {})
    names = ("classes", "mAP\n95 %", "n", "top-1\n95 %", *(["n", "rolled up\n95 %"] if ranks else ()))
    table = make_table(f"Per group, % · {entry['name']} {entry['split']}", ("group",), names)
    for name in dict.fromkeys((*groups, *ranks)):
        own, rank = groups.get(name, {}), ranks.get(name, {})
        cells = [f"{own['classes']:,}" if own else "", share_and_interval(own, "map"), f"{own['n']:,}" if own else ""]
        cells.append(share_and_interval(own, "top1"))
        if ranks:
            cells += [f"{rank['n']:,}" if rank else "", share_and_interval(rank, "top1")]
        table.add_row(name or "(no group)", *cells)
    return table


def retrieval_table(entries: Sequence[Mapping[str, Any]], model: str) -> Table:
    names = ("queries", "R@1\n95 %", "R@5\n95 %", "R@10\n95 %")
    table = make_table(f"Retrieval, % · {model}", ("data", "split", "direction"), names)
    for entry in entries:
        found = entry["retrieval"]
        for direction, queries in (("text_to_image", "texts"), ("image_to_text", "images")):
            shares = [share_and_interval(found[direction], k) for k in ("r1", "r5", "r10")]
            table.add_row(entry["name"], entry["split"], direction.replace("_", " "), f"{found[queries]:,}", *shares)
    return table


def cross_modal_tables(entry: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the recalls between modalities, each above that of a random order, and the accuracy of each modality."""
    place = f"{entry['name']} {entry['split']}"
    if "retrieval" in figures:
        names = ("rows", "R@1\nchance", "R@5\nchance", "R@10\nchance")
        table = make_table(f"Cross-modal retrieval, % · {place}", ("direction",), names)
        for direction, found in figures["retrieval"].items():
            shares = [f"{percent(found[f'r{k}'])}\n{percent(found[f'chance_r{k}'])}" for k in (1, 5, 10)]
            table.add_row(direction.replace("_", " "), f"{found['n']:,}", *shares)
        yield table
    if "zeroshot" in figures:
        table = make_table(f"Classification by modality, % · {place}", ("modality",), ("n", "top-1\n95 %", "chance"))
        for name, found in figures["zeroshot"].items():
            table.add_row(name, f"{found['n']:,}", share_and_interval(found, "top1"), percent(found["chance"]))
        yield table


def search_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the nearest items of each query."""
    for answer in document["queries"]:
        table = Table(title=answer["query"], title_justify="left")
        for name in ("cosine", "key", "texts"):
            table.add_column(name, overflow="fold")
        for item in answer["results"]:
            table.add_row(f"{item['cosine']:.3f}", item.get("key", ""), "; ".join(item["texts"]))
        yield table


def evaluator_table(entry: Mapping[str, Any], name: str, figures: Mapping[str, Any]) -> Table:
    """Return the metrics of another evaluator; longer values are only in the JSON."""
    table = make_table(f"{name} · {entry['name']} {entry['split']}", ("metric",), ("value",))
    for figure, value in figures.items():
        if isinstance(value, float):
            table.add_row(label_figure(figure), format_figure(figure, value))
        elif isinstance(value, int | str):
            table.add_row(figure, str(value))
    return table


def probe_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the result on the tested split and the validation curve, or a table of the numbers of shots."""
    kind = "Linear probe" if document["method"] == "logreg" else "Nearest neighbours"
    title, names = f"{kind}, % · {document['model']}", ("data", "split", "features")
    known = [document[name] for name in names]
    if "few_shot" in document:
        table = make_table(title, names, ("n", "shots", "top-1", "sd", "seeds"))
        for entry in document["few_shot"]:
            deviation = "" if entry["top1_sd"] is None else percent(entry["top1_sd"])
            each = " ".join(percent(run["top1"]) for run in entry["runs"])
            table.add_row(*known, f"{document['n']:,}", str(entry["shots"]), percent(entry["top1"]), deviation, each)
        yield table
        return
    setting, figure = "c" if "c" in document else "k", "top1" if "top1" in document else "map"
    table = make_table(title, names, ("n", label_figure(figure), "95 %", "C" if setting == "c" else "k"))
    shown = percent(document[figure]), interval(document[f"{figure}_interval"]), f"{document[setting]:.3g}"
    table.add_row(*known, f"{document['n']:,}", *shown)
    yield table
    if figure == "map":
        yield from detail_tables({"name": document["data"], **document})
    if not document["curve"]:  # C was given
        return
    curve = make_table(
        f"Validation {'accuracy' if figure == 'top1' else 'mAP'} over {'C' if setting == 'c' else 'k'}, %",
        (),
        ("C" if setting == "c" else "k", label_figure(figure)),
    )
    for point in document["curve"]:
        curve.add_row(f"{point[setting]:.3g}", percent(point["val"]))
    yield curve
