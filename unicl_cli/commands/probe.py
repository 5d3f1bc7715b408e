"""`unicl probe [MODEL]`: logistic regression on a model's picture features."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import Quiet

app = typer.Typer(add_completion=False)


class FeaturePoint(StrEnum):
    """Before or after the projection into the joint space."""

    pre = "pre"
    post = "post"


@app.command()
def probe(
    model_argument: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A run or checkpoint; default: the run that finished last.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The same as the first argument.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="CORPUS", help="Default: the corpus of the model's recipe.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The tested split; default: test, else val.")] = None,
    features: Annotated[
        FeaturePoint, typer.Option(help="pre: the image tower's output; post: after the projection.")
    ] = FeaturePoint.pre,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that each process encodes at once.")] = 128,
    devices: Annotated[str, typer.Option(help="auto, a number of GPUs, or cpu:N for N processes.")] = "auto",
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Not their moving average.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for the JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fit a linear classifier on frozen features; its strength C is chosen on validation data alone."""
    from unicl_cli.commands.measured import in_workers, load, one_model, show

    named = one_model(model_argument, model)

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.report import probe_tables
        from unicl_cli.jobs.probe import probe as job

        loaded = load(named, accelerator.device, raw_weights=raw_weights)
        document = job(loaded, data=data, split=split, features=features.value, batch=batch, accelerator=accelerator)
        show(document, probe_tables, as_json=as_json, out=out)

    in_workers(devices, work)
