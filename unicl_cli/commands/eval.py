"""`unicl eval [MODEL]`: zero-shot classification and retrieval on prepared corpora."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli import registry
from unicl_cli.commands import (
    OUTPUT,
    Batch,
    Devices,
    Json,
    ModelArgument,
    Out,
    Quiet,
    RawWeights,
    SameModel,
    Template,
    examples,
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
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="CORPUS", help="Corpus to measure on; may be repeated. Default: those of the recipe."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split to measure on. Default: test, or val without one.")
    ] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(
            "--evaluator", metavar="NAME", help="Evaluator to run; may be repeated. Default: zeroshot and retrieval."
        ),
    ] = None,
    batch: Batch = 128,
    devices: Devices = "auto",
    template: Template = None,
    raw_weights: RawWeights = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.parquet", help="Also write the predicted class of each labelled row.", rich_help_panel=OUTPUT
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
        report_write_error,
    )
    from unicl_cli.commands.workers import run_on_devices

    named = pick_model(model_argument, model)
    if predictions is not None and predictions.suffix != ".parquet":
        raise UniclError(
            f"--predictions {predictions}: not a name of a Parquet file", "use a name that ends in .parquet"
        )
    for name in evaluator or ():
        registry.find("evaluators", name)
    check_before_loading([named], data or (), ("--predictions", predictions), ("-o", out))
    check_splits(named, data or (), split)

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.tables import eval_tables
        from unicl_cli.jobs.evaluate import evaluate as job
        from unicl_cli.jobs.evaluate import write_predictions
        from unicl_cli.launch.process import is_peer

        loaded = load_with_templates(named, accelerator.device, template, raw_weights=raw_weights)
        kept: list[Mapping[str, Any]] = []
        keep = None if predictions is None or is_peer() else kept.append
        chosen = list(dict.fromkeys(evaluator or ())) or None
        document = job(
            loaded,
            data=data or None,
            split=split,
            batch=batch,
            accelerator=accelerator,
            evaluators=chosen,
            keep=keep,
        )
        if predictions is not None and kept:
            with report_write_error("--predictions", predictions):
                write_predictions(predictions, kept)
        print_document(document, eval_tables, as_json=as_json, out=out)

    run_on_devices(devices, work)
