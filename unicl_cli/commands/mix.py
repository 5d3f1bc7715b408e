"""`unicl mix OLD NEW`: weights between a model and its fine-tuned self."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import MODEL_FORMS, Batch, Devices, Json, Quiet
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)

STEPS = tuple(step / 10 for step in range(11))


@app.command()
def mix(
    old: Annotated[str, typer.Argument(metavar="OLD", help=f"What was fine-tuned. {MODEL_FORMS}.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="What became of it: a run or a checkpoint.")],
    alpha: Annotated[
        str | None, typer.Option(help="The share of NEW, 0 to 1; several, as 0,0.25,0.5, are measured. Default: 0.5.")
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Measure at 0, 0.1, … 1.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder for the mixture; of several, the best.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="CORPUS", help="Measure here. Default: the recipe's corpora.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: val, else test.")] = None,
    batch: Batch = 128,
    devices: Devices = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Mix old and fine-tuned weights, so that what the old ones could is kept (WiSE-FT)."""
    del quiet
    alphas = parse_alphas(alpha, curve=curve)
    if out is None and not data and len(alphas) == 1:
        raise UniclError("nothing to do", "write the mixture with -o DIR, or measure it with --data CORPUS")
    from unicl_cli.commands.output import check_before_loading, print_document
    from unicl_cli.commands.workers import run_in_workers

    check_before_loading([old, new], data or ())

    def work(accelerator: Any) -> None:
        from unicl_cli.jobs.mix import mix as job
        from unicl_cli.jobs.mix import mix_tables
        from unicl_cli.launch.process import is_peer

        wanted: dict[str, Any] = {"alphas": alphas, "out": out, "data": data, "split": split, "batch": batch}
        document = job((old, new), accelerator=accelerator, **wanted)
        print_document(document, mix_tables, as_json=as_json)
        if out is not None and not as_json and not is_peer():
            typer.echo(out)

    run_in_workers(devices, work)


def parse_alphas(text: str | None, *, curve: bool) -> tuple[float, ...]:
    """The alphas that are asked for, in order, each once."""
    if curve and text is not None:
        raise UniclError("--curve and --alpha exclude each other", "--curve is --alpha 0,0.1,…,1")
    if text is None:
        return STEPS if curve else (0.5,)
    try:
        found = tuple(sorted({float(cell) for cell in text.split(",") if cell.strip()}))
    except ValueError as error:
        raise UniclError(
            f"--alpha {text}: is no list of numbers", "for example --alpha 0.5, or --alpha 0,0.5,1"
        ) from error
    if not found or not all(0 <= share <= 1 for share in found):
        raise UniclError(f"--alpha {text}: lies outside of 0 to 1", "0 is OLD, 1 is NEW")
    return found
