"""Models evaluated on the same rows: metrics with intervals, and paired differences from the first model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unicl_cli.errors import UniclError
from unicl_cli.evaluate.multilabel import Doubles, compare_means
from unicl_cli.evaluate.retrieval import Found, image_hits, text_hits
from unicl_cli.evaluate.statistics import Counts, Difference, adjust_holm, compare_shares
from unicl_cli.inference.scorer import shorten_names
from unicl_cli.jobs.compare.recipes import changed_keys, common_corpora, read_recipe
from unicl_cli.jobs.evaluate import evaluate, open_corpora
from unicl_cli.jobs.evaluators.candidates import choose_candidates
from unicl_cli.jobs.evaluators.kept import AnswerColumns, Keep

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.jobs.evaluators.options import Asked

SHOWN = (
    *("n", "classes", "candidates", "top1", "top1_interval", "top5", "top5_interval"),
    *("mean_per_class", "mean_per_class_interval", "map", "map_interval", "map_micro", "per_group", "per_rank"),
    *("lca_distance", "reason", "retrieval", "trained_on", "trained_classes", "duplicates_of_eval"),
)
"""Metrics of an evaluation that are shown next to those of the other models."""
Hits = tuple[Counts, Counts]
"""Hits and trials of each item, both int64 (n,)."""


class Measured(NamedTuple):
    """One model on one split of one corpus: its entry of `unicl eval`, its answers, its ranks in retrieval.

    ``precisions`` are the average precisions of classes, and the influence of each row on their sum.
    """

    entry: Mapping[str, Any]
    answers: AnswerColumns | None
    found: Found | None
    precisions: tuple[Doubles, Doubles] | None = None


class Comparison(NamedTuple):
    """The document of `unicl compare`, the corpora by path, and for each data set the answers of every model."""

    document: dict[str, Any]
    corpora: tuple[str, ...]
    measured: list[list[Measured]]


def compare(
    models: Sequence[str],
    load: Callable[[str], Loaded],
    *,
    data: Sequence[str] | None,
    split: str | None,
    batch: int,
    accelerator: Any,
    candidates: Asked = "all",
) -> Comparison:
    """Evaluate the models one after the other, as `unicl eval` does, and compare each with the first.

    ``data`` None means the corpora of the recipes, which must be the same. The document is the same on every rank.
    Raises UniclError where the models would not answer the same question.
    """
    recipes = [read_recipe(model) for model in models]
    corpora = tuple(data) if data is not None else common_corpora(models, recipes)
    documents: list[dict[str, Any]] = []
    measured: list[list[Measured]] = []
    templates: list[tuple[str, ...]] = []
    further: list[list[list[str]]] = []
    for model in models:
        loaded = load(model)._replace(corpora=corpora)
        further.append(further_candidates(loaded, candidates))
        check_candidates(models, further)
        answers: list[AnswerColumns] = []
        found: list[Found] = []
        precisions: list[tuple[Doubles, Doubles]] = []
        settings: dict[str, Any] = {"split": split, "batch": batch, "accelerator": accelerator}
        keep = Keep(answers.append, found.append, precisions.append)
        documents.append(evaluate(loaded, data=data, keep=keep, candidates=candidates, **settings))
        measured.append(join_kept(documents[-1]["data"], answers, found, precisions))
        templates.append(loaded.templates)
    by_data = [list(each) for each in zip(*measured, strict=True)]
    document: dict[str, Any] = {
        "schema": "unicl/compare/1",
        "models": list(models),
        "data": [compare_entries(models, each) for each in by_data],
        "recipes": changed_keys(recipes),
    }
    warnings = join_warnings(models, [each.get("warnings", ()) for each in documents])
    warnings += template_warnings(models, templates)
    return Comparison(document | {"warnings": warnings} if warnings else document, corpora, by_data)


def join_kept(
    entries: Sequence[Mapping[str, Any]],
    answers: Sequence[AnswerColumns],
    found: Sequence[Found],
    precisions: Sequence[tuple[Doubles, Doubles]],
) -> list[Measured]:
    """Join each entry with the answers of its classification and the ranks of its retrieval, kept in this order."""
    next_answers, next_found, next_precisions = iter(answers), iter(found), iter(precisions)
    return [
        Measured(
            entry,
            next(next_answers) if "top1" in entry else None,
            next(next_found) if "retrieval" in entry else None,
            next(next_precisions) if entry.get("map") is not None else None,
        )
        for entry in entries
    ]


def compare_entries(models: Sequence[str], measured: Sequence[Measured]) -> dict[str, Any]:
    """Return one entry of the document: all models on one split of one corpus. UniclError if its rows changed."""
    entry: dict[str, Any] = {key: measured[0].entry[key] for key in ("name", "split", "checksum")}
    if any(each.entry["checksum"] != entry["checksum"] for each in measured):
        raise UniclError(f"{entry['name']}: the corpus changed during the comparison", "run the same command again")
    entry["models"] = [
        {"model": model, **{key: each.entry[key] for key in SHOWN if key in each.entry}}
        for model, each in zip(models, measured, strict=True)
    ]
    entry["differences"] = compare_figures(models, measured)
    recalls = [each.entry.get("per_class") for each in measured]
    classes = next((own for own in recalls if own is not None), [])
    if classes:
        figure = class_figure(classes)
        entry["per_class"] = [
            {
                "class": row["class"],
                **({"group": row["group"]} if "group" in row else {}),
                "n": row["n"],
                figure: [None if own is None else own[place][figure] for own in recalls],
            }
            for place, row in enumerate(classes)
        ]
    warnings = join_warnings(models, [each.entry.get("warnings", ()) for each in measured])
    for part, words in (("candidates", "classes"), ("retrieval", "captions")):
        without = [model for model, each in zip(models, measured, strict=True) if part not in each.entry]
        if 0 < len(without) < len(models):
            warnings.append(f"{', '.join(without)}: not compared on {words}, which the model does not score")
    return entry | {"warnings": warnings} if warnings else entry


def class_figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the metric of classes: average precision of label sets, else recall."""
    return "ap" if any("ap" in row for row in rows) else "recall"


def further_candidates(loaded: Loaded, asked: Asked) -> list[list[str]]:
    """Return for each corpus the candidate classes of the model besides those of the corpus."""
    return [choose_candidates(corpus.classes, loaded.classes, asked).further for corpus in open_corpora(loaded, None)]


def check_candidates(models: Sequence[str], further: Sequence[list[list[str]]]) -> None:
    """Raise UniclError unless the newest model chooses from the same classes as the first."""
    for first, newest in zip(further[0], further[-1], strict=True):
        if differing := sorted(set(first) ^ set(newest)):
            raise UniclError(
                f"{models[0]} and {models[len(further) - 1]} choose from different classes: "
                f"{shorten_names(differing)} are candidates of one of them only",
                "add --candidates corpus: all of them then choose from the classes of the corpus",
            )


def join_warnings(models: Sequence[str], found: Sequence[Sequence[str]]) -> list[str]:
    """Return the warnings of all models, each once: with the names of its models unless all have it."""
    owners: dict[str, list[str]] = {}
    for model, texts in zip(models, found, strict=True):
        for text in texts:
            owners.setdefault(text, []).append(model)
    return [text if len(own) == len(models) else f"{', '.join(own)}: {text}" for text, own in owners.items()]


def template_warnings(models: Sequence[str], templates: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a warning if the models fill different templates with the class names."""
    if all(own == templates[0] for own in templates):
        return []
    counts = ", ".join(f"{model} {len(own)}" for model, own in zip(models, templates, strict=True))
    return [f"the models use different prompt templates ({counts}): --template gives all of them the same"]


def compare_figures(models: Sequence[str], measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return the difference of each metric of each model from the first model's, with its interval and exact test."""
    first, *others = [hits_of(each) for each in measured]
    rows: list[dict[str, Any]] = []
    for figure, (hits, trials) in first.items():
        rows += figure_rows(
            figure,
            [
                (model, compare_shares(hits, other[figure][0], trials))
                for model, other in zip(models[1:], others, strict=True)
                if figure in other
            ],
        )
    base = measured[0].precisions
    if base is not None:
        scored = [(model, each.precisions) for model, each in zip(models[1:], measured[1:], strict=True)]
        rows += figure_rows("map", [(model, compare_means(base, own)) for model, own in scored if own is not None])
    return rows


def figure_rows(figure: str, tested: Sequence[tuple[str, Difference]]) -> list[dict[str, Any]]:
    """Return the rows of one metric: each model's difference, with p adjusted for their number."""
    adjusted = adjust_holm([found.p for _, found in tested])
    return [
        {"figure": figure, "model": model, **found._asdict(), "interval": list(found.interval), "p_holm": p_holm}
        for (model, found), p_holm in zip(tested, adjusted, strict=True)
    ]


def hits_of(measured: Measured) -> dict[str, Hits]:
    """Return the hits of each metric that is a share of hits; the mean per class is not one."""
    figures: dict[str, Hits] = {}
    if measured.answers is not None:
        ranks = np.asarray(measured.answers["rank"], np.int64)
        figures |= {
            name: ((ranks < k).astype(np.int64), np.ones_like(ranks))
            for name, k in (("top1", 1), ("top5", 5))
            if measured.entry.get(name) is not None
        }
    if measured.found is not None:
        figures["text_to_image_r1"] = text_hits(measured.found, 1)
        figures["image_to_text_r1"] = image_hits(measured.found, 1)
    return figures
