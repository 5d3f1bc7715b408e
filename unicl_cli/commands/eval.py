"""`unicl eval [MODEL]`: zero-shot classification and retrieval on prepared corpora."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import Quiet

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model_argument: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A run or checkpoint; default: the run that finished last.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The same as the first argument.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="CORPUS", help="Default: the corpora of the model's recipe.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: test, else val.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that each process encodes at once.")] = 128,
    devices: Annotated[str, typer.Option(help="auto, a number of GPUs, or cpu:N for N processes.")] = "auto",
    template: Annotated[
        list[str] | None, typer.Option(help="A prompt like 'a photo of a {}.', a list's name (clip80, none) or a file.")
    ] = None,
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Not their moving average.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for the JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure zero-shot accuracy, per class and per source, and retrieval where there are captions."""
    from unicl_cli.commands.measured import in_workers, load, one_model, show

    named = one_model(model_argument, model)

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.report import eval_tables
        from unicl_cli.jobs.evaluate import evaluate as job

        loaded = load(named, accelerator.device, template, raw_weights=raw_weights)
        document = job(loaded, data=data or None, split=split, batch=batch, accelerator=accelerator)
        show(document, eval_tables, as_json=as_json, out=out)

    in_workers(devices, work)
