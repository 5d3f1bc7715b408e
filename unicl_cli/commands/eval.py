"""`unicl eval [MODEL]`: zero-shot classification and retrieval on prepared corpora."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli import registry
from unicl_cli.commands import (
    OUTPUT,
    Batch,
    Candidates,
    Data,
    Devices,
    Json,
    ModelArgument,
    Out,
    Quiet,
    RawWeights,
    SameModel,
    Split,
    Template,
    examples,
    output_file,
)
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "unicl eval", "unicl eval runs/first --data corpus --split val", "unicl eval runs/first --fit-thresholds"
    )
)
def evaluate(
    model_argument: ModelArgument = None,
    model: SameModel = None,
    data: Data = None,
    split: Split = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(
            "--evaluator", metavar="NAME", help="Evaluator to run; may be repeated. Default: zeroshot and retrieval."
        ),
    ] = None,
    candidates: Candidates = "all",
    batch: Batch = 128,
    devices: Devices = "auto",
    template: Template = None,
    raw_weights: RawWeights = False,
    thresholds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Thresholds for F1 of label sets. Default: those of the run."),
    ] = None,
    fit_thresholds: Annotated[
        bool,
        typer.Option(
            "--fit-thresholds",
            help="Fit thresholds on split val (or --split) instead, and write them into the run (or to -o FILE).",
        ),
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=output_file,
            help="Also write the predicted class of each labelled row: .parquet, .csv or .jsonl.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=output_file,
            help="Also write a page with the confused classes and mistakes as images: one file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure zero-shot accuracy, per class and per source, and retrieval where there are captions."""
    from unicl_cli.commands.output import (
        check_before_loading,
        check_splits,
        load_with_templates,
        pick_model,
        print_document,
    )
    from unicl_cli.jobs.evaluators.options import parse_candidates
    from unicl_cli.jobs.predictions import write_predictions
    from unicl_cli.launch.workers import run_on_devices
    from unicl_cli.runs.thresholds import find_thresholds
    from unicl_cli.storage.json_output import report_write_error

    named = pick_model(model_argument, model)
    check_predictions(predictions, evaluator)
    answerable = parse_candidates(candidates)
    if fit_thresholds:
        check_only_fit(
            {"--thresholds": thresholds, "--evaluator": evaluator, "--predictions": predictions, "--html": html}
        )
        fit_and_write(named, data, split, batch, devices, template, out, raw_weights=raw_weights, as_json=as_json)
        return
    found = find_thresholds(named, thresholds, is_plain=not template and not raw_weights, raw_weights=raw_weights)
    check_before_loading([named], data or (), ("--predictions", predictions), ("--html", html), ("-o", out))
    check_splits(named, data or (), split)

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.tables import eval_tables
        from unicl_cli.jobs.evaluate import evaluate as job
        from unicl_cli.jobs.evaluate import open_corpora
        from unicl_cli.jobs.evaluators.kept import AnswerColumns, Keep
        from unicl_cli.launch.process import is_peer

        loaded = load_with_templates(named, accelerator.device, template, raw_weights=raw_weights)
        kept: list[AnswerColumns] = []
        chosen = list(dict.fromkeys(evaluator or ())) or None
        document = job(
            loaded,
            data=data or None,
            split=split,
            batch=batch,
            accelerator=accelerator,
            evaluators=chosen,
            keep=Keep(answers=kept.append if predictions or html else None, thresholds=found),
            candidates=answerable,
        )
        if predictions is not None and kept and not is_peer():
            with report_write_error("--predictions", predictions):
                write_predictions(predictions, kept)
            warn_about_predictions(predictions, document)
        if html is not None and not is_peer():
            from unicl_cli.jobs.evaluation_page import evaluation_page
            from unicl_cli.pages.html import write_page

            write_page(html, evaluation_page(document, kept, open_corpora(loaded, data)))
        print_document(document, eval_tables, as_json=as_json, out=out)
        if predictions is not None and not kept:
            raise no_predictions_error(predictions, document)

    run_on_devices(devices, work)


def check_predictions(predictions: Path | None, evaluators: list[str] | None) -> None:
    """Raise UniclError for a kind of file that cannot be written, and for an evaluator that there is not."""
    from unicl_cli.jobs.predictions import SUFFIXES

    if predictions is not None and predictions.suffix not in SUFFIXES:
        raise UniclError(
            f"--predictions {predictions}: unknown kind of file", f"use a name that ends in {' or '.join(SUFFIXES)}"
        )
    for name in evaluators or ():
        registry.find("evaluators", name)


def without_answers(document: dict[str, Any]) -> list[str]:
    """Return the data sets whose rows have label sets, and so no single answer."""
    entries = [entry for entry in document["data"] if "map" in entry and "top1" not in entry]
    return [f"{entry['name']} {entry['split']}" for entry in entries]


def warn_about_predictions(file: Path, document: dict[str, Any]) -> None:
    """Warn of data sets that are not in the file."""
    from unicl_cli.commands.output import print_warning

    for name in without_answers(document):
        print_warning(f"--predictions {file}: left out: rows of {name} have label sets")


def no_predictions_error(file: Path, document: dict[str, Any]) -> UniclError:
    """Return the error for an evaluation without a single answer to write."""
    names = without_answers(document)
    reason = f"rows of {', '.join(names)} have label sets" if names else "no row with a label was classified"
    hint = "leave it out, or name another corpus with --data"
    if names:
        hint += "; unicl zeroshot --multi --json writes the labels of images"
    return UniclError(f"--predictions {file}: not written: {reason}", hint)


def check_only_fit(given: dict[str, Any]) -> None:
    """Raise UniclError for an evaluation option given with --fit-thresholds, which does not evaluate."""
    for option, value in given.items():
        if value:
            raise UniclError(f"{option}: cannot be combined with --fit-thresholds", "leave one of them out")


def fit_and_write(
    model: str | None,
    data: list[str] | None,
    split: str | None,
    batch: int,
    devices: str,
    template: list[str] | None,
    out: Path | None,
    *,
    raw_weights: bool,
    as_json: bool,
) -> None:
    """Fit thresholds and write them to ``out``, or into the run."""
    from unicl_cli.commands.output import (
        check_before_loading,
        check_splits,
        load_with_templates,
        print_document,
        print_note,
    )
    from unicl_cli.launch.workers import run_on_devices
    from unicl_cli.runs.folder import choose_model
    from unicl_cli.runs.thresholds import hash_weights, thresholds_place, write_thresholds
    from unicl_cli.storage.json_output import report_write_error

    check_before_loading([model], data or (), ("-o", out))
    check_splits(model, data or (), split or "val")
    is_plain = not template and not raw_weights
    place = out or (thresholds_place(choose_model(model)) if is_plain else None)
    if place is None:
        why = (
            "is not a run, so there is no folder for them" if is_plain else "would answer with other weights or prompts"
        )
        raise UniclError(f"--fit-thresholds: {choose_model(model)} {why}", "name a file for them: -o FILE")

    weights = hash_weights(choose_model(model), raw_weights=raw_weights)

    def work(accelerator: Any) -> None:
        from unicl_cli.jobs.thresholds import fit_model_thresholds, threshold_tables
        from unicl_cli.launch.process import is_peer

        loaded = load_with_templates(model, accelerator.device, template, raw_weights=raw_weights)
        fitted = fit_model_thresholds(
            loaded, data=data or None, split=split, batch=batch, accelerator=accelerator, weights=weights
        )
        if not is_peer():
            with report_write_error("-o" if out else "--fit-thresholds", place):
                write_thresholds(place, fitted.thresholds)
        print_document(fitted.document | {"file": str(place)}, threshold_tables, as_json=as_json)
        print_note(f"wrote {place}: unicl eval reports F1 at these thresholds; evaluate on another split")

    run_on_devices(devices, work)
