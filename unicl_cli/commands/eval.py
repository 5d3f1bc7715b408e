"""`unicl eval [MODEL]`: zero-shot classification and retrieval on prepared corpora."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli import registry
from unicl_cli.commands import Batch, Devices, Json, ModelArgument, Out, Quiet, RawWeights, SameModel, Template
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model_argument: ModelArgument = None,
    model: SameModel = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="CORPUS", help="Default: the corpora of the model's recipe.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: test, else val.")] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Evaluators to run, repeatable; default: zeroshot and retrieval."),
    ] = None,
    batch: Batch = 128,
    devices: Devices = "auto",
    template: Template = None,
    raw_weights: RawWeights = False,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="What was answered to each row with a label.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure zero-shot accuracy, per class and per source, and retrieval where there are captions."""
    from unicl_cli.commands.output import check_first, load, one_model, show, writing
    from unicl_cli.commands.workers import in_workers

    named = one_model(model_argument, model)
    if predictions is not None and predictions.suffix != ".parquet":
        raise UniclError(f"--predictions {predictions}: is written as Parquet", "give a name that ends in .parquet")
    for name in evaluator or ():
        registry.find("evaluators", name)
    check_first([named], data or (), ("--predictions", predictions), ("-o", out))

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.tables import eval_tables
        from unicl_cli.jobs.evaluate import evaluate as job
        from unicl_cli.jobs.evaluate import write_predictions
        from unicl_cli.launch.process import is_peer

        loaded = load(named, accelerator.device, template, raw_weights=raw_weights)
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
            with writing("--predictions", predictions):
                write_predictions(predictions, kept)
        show(document, eval_tables, as_json=as_json, out=out)

    in_workers(devices, work)
