"""The document of `unicl eval`, and the metrics of a validation during training: evaluators run on corpora."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from unicl_cli.core.dist import bare
from unicl_cli.data.corpus import EVAL_SPLITS, open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.evaluators.build import DEFAULT_EVALUATORS, make_evaluator, missing_needs
from unicl_cli.jobs.overlap import Overlap, find_left_out, find_overlap, recipes_of
from unicl_cli.jobs.trained_classes import find_trained_classes
from unicl_cli.runs.folder import no_corpus_error

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.contracts import Part
    from unicl_cli.data.corpus import Corpus
    from unicl_cli.evaluator_contracts import Evaluator
    from unicl_cli.jobs.evaluators.kept import Keep
    from unicl_cli.jobs.evaluators.options import Asked


def evaluate(
    loaded: Loaded,
    *,
    data: Sequence[str] | None,
    split: str | None,
    batch: int,
    accelerator: Any,
    evaluators: Sequence[str] | None = None,
    keep: Keep | None = None,
    candidates: Asked = "all",
) -> dict[str, Any]:
    """Return the document of `unicl eval`, the same on every rank.

    ``data`` None means the corpora of the model's recipe, ``evaluators`` None means zeroshot and retrieval. For an
    evaluator that is named but does not fit a corpus there is a warning. ``candidates`` are the classes that zeroshot
    may answer.
    """
    options = {"zeroshot": {"candidates": candidates}}
    made = {
        name: make_evaluator({"name": name, **options.get(name, {})}, keep) for name in evaluators or DEFAULT_EVALUATORS
    }
    corpora = open_corpora(loaded, data)
    encoder = Encoder(loaded, accelerator.autocast)
    recipes = recipes_of(loaded.name)
    warnings: list[str] = []
    entries: list[dict[str, Any]] = []
    for corpus in corpora:
        if data is None and split is None and len(corpora) > 1 and not set(EVAL_SPLITS) & set(corpus.splits):
            warnings.append(f"{corpus.name} has neither a test nor a val split: left out")
            continue
        tested = corpus.eval_split(split)
        entry = measure(encoder, corpus, tested, made, batch=batch, tell_unfit=evaluators is not None)
        entry = add_overlap(entry, find_overlap(recipes, corpus, tested))
        if trained := find_trained_classes(recipes, corpus, tested):
            entry["trained_classes"] = trained.facts()
        left_out = find_left_out(recipes, corpus, tested)
        entries.append(entry | {"duplicates_of_eval": left_out} if left_out else entry)
    if not entries:
        raise UniclError(
            "no corpus of the model's recipe has a test or val split", "name the data: --data CORPUS --split train"
        )
    document: dict[str, Any] = {"schema": "unicl/eval/1", "model": loaded.name, "data": entries}
    return document | {"warnings": warnings} if warnings else document


def open_corpora(loaded: Loaded, data: Sequence[str] | None) -> list[Corpus]:
    """Open the named corpora, or those of the model's recipe, each once."""
    paths = list(dict.fromkeys(data or loaded.corpora))
    if not paths:
        raise no_corpus_error(loaded.name)
    return [open_corpus(path) for path in paths]


def measure(
    encoder: Encoder,
    corpus: Corpus,
    split: str,
    evaluators: Mapping[str, Evaluator],
    *,
    batch: int,
    tell_unfit: bool = False,
) -> dict[str, Any]:
    """Return one entry of the document: the metrics of the evaluators that fit the model and the split.

    Raises UniclError if none does.
    """
    entry: dict[str, Any] = {"name": corpus.name, "split": split}
    warnings: list[str] = []
    unfit: list[str] = []
    loaded = encoder.loaded
    for name, evaluator in evaluators.items():
        if missing := missing_needs(evaluator, loaded.step, loaded.tokenizer, corpus, split):
            unfit.append(f"{name} needs {' and '.join(missing)}")
            continue
        figures = dict(evaluator(encoder, corpus, split, batch=batch))
        warnings += figures.pop("warnings", [])
        if figures:
            add_figures(entry, name, figures)
        else:
            unfit.append(f"{name} finds nothing to measure")
    if len(unfit) == len(evaluators):
        raise UniclError(
            f"corpus {corpus.path}, split {split}: nothing to evaluate model {loaded.name} on: " + "; ".join(unfit),
            "use rows with labels or captions that the model was trained for, or `unicl probe` for its features",
        )
    if tell_unfit:
        warnings += [f"{reason}: left out" for reason in unfit]
    entry["checksum"] = corpus.checksum
    return entry | {"warnings": warnings} if warnings else entry


def add_overlap(entry: dict[str, Any], overlap: Overlap) -> dict[str, Any]:
    """Return the entry with the number of its images that the model was trained on, if there are any."""
    if not overlap.trained:
        return entry
    return entry | {"trained_on": overlap.trained, "warnings": [*entry.get("warnings", ()), overlap.warning()]}


def add_figures(entry: dict[str, Any], name: str, figures: dict[str, Any]) -> None:
    """Put an evaluator's metrics into the entry: those of zeroshot at its top level, others under their own key."""
    if name == "zeroshot":
        entry |= figures
    elif name == "retrieval":
        entry.setdefault("n", figures["images"])
        entry["retrieval"] = figures
    else:
        try:
            json.dumps(figures, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UniclError(
                f"evaluator '{name}' returned values that JSON cannot hold: {error}", "fix or update the plugin"
            ) from error
        entry.setdefault("evaluators", {})[name] = figures


def measure_validation(
    loaded: Loaded,
    corpus: Corpus,
    split: str,
    *,
    batch: int,
    limit: int | None = None,
    candidates: Literal["all", "corpus"] = "all",
    evaluators: Sequence[Part] | None = None,
) -> dict[str, Any]:
    """Return the main metrics of a validation during training, the same on every rank; ``limit`` rows of each kind.

    ``top1`` of the rows with labels (None with a ``reason`` if there is a single candidate), ``map`` of rows with label
    sets, and the number of ``candidates``; ``text_to_image_r1`` and ``image_to_text_r1`` of those with captions;
    nothing for a loss that scores no classes. ``evaluators`` None means zeroshot and retrieval; metrics of others begin
    with their name: ``knn_top1``. ``loaded.step`` may be plain, DDP or FSDP2: all ranks call this together. It is left
    in the mode in which it was. Precision is the caller's autocast.
    """
    step: Any = bare(loaded.step)
    training = step.training
    step.eval()
    try:
        parts = evaluators or DEFAULT_EVALUATORS
        return main_figures(Encoder(loaded), corpus, split, parts, batch=batch, limit=limit, candidates=candidates)
    finally:
        step.train(training)


def main_figures(
    encoder: Encoder,
    corpus: Corpus,
    split: str,
    evaluators: Sequence[str | Part],
    *,
    batch: int,
    limit: int | None,
    candidates: Asked,
) -> dict[str, Any]:
    """Return the main metrics of each evaluator that fits."""
    values: dict[str, Any] = {}
    loaded = encoder.loaded
    for part in evaluators:
        name = part if isinstance(part, str) else part.name
        evaluator = make_evaluator({"name": name, "candidates": candidates} if name == "zeroshot" else part)
        if missing_needs(evaluator, loaded.step, loaded.tokenizer, corpus, split):
            continue
        figures = evaluator(encoder, corpus, split, batch=batch, limit=limit)
        if name == "zeroshot":
            main = {name: figures[name] for name in ("top1", "map") if name in figures}
            values |= main | {"candidates": figures["candidates"]["total"]}
            values |= {"reason": figures["reason"]} if "reason" in figures else {}
        elif name == "retrieval":
            values |= {f"{way}_r1": figures[way]["r1"] for way in ("text_to_image", "image_to_text") if figures}
        else:
            chosen = getattr(evaluator, "main", figures)
            values |= {f"{name}_{key}": figures[key] for key in chosen if isinstance(figures.get(key), float)}
    return values
