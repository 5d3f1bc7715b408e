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
        "unicl eval", "unicl eval runs/first --data corpus --split val", "unicl eval runs/first -o first.json"
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
        print_warning,
        report_write_error,
    )
    from unicl_cli.commands.workers import run_on_devices
    from unicl_cli.jobs.evaluators.options import parse_candidates
    from unicl_cli.jobs.predictions import SUFFIXES, write_predictions

    named = pick_model(model_argument, model)
    if predictions is not None and predictions.suffix not in SUFFIXES:
        raise UniclError(
            f"--predictions {predictions}: unknown kind of file", f"use a name that ends in {' or '.join(SUFFIXES)}"
        )
    for name in evaluator or ():
        registry.find("evaluators", name)
    answerable = parse_candidates(candidates)
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
            keep=Keep(answers=kept.append if predictions or html else None),
            candidates=answerable,
        )
        if predictions is not None and not is_peer():
            if kept:
                with report_write_error("--predictions", predictions):
                    write_predictions(predictions, kept)
            else:
                print_warning(f"--predictions {predictions}: not written: no rows with labels were classified")
        if html is not None and not is_peer():
            from unicl_cli.jobs.evaluation_page import evaluation_page
            from unicl_cli.pages.html import write_page

            write_page(html, evaluation_page(document, kept, open_corpora(loaded, data)))
        print_document(document, eval_tables, as_json=as_json, out=out)

    run_on_devices(devices, work)
