"""`unicl mix OLD NEW`: averages of a model's weights before and after fine-tuning (WiSE-FT)."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import MODEL_FORMS, Batch, Data, Devices, Json, Quiet, examples, output_folder
from unicl_cli.commands.completion import complete_runs
from unicl_cli.commands.output import print_path
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)

CURVE = tuple(step / 10 for step in range(11))
"""Shares of NEW that `--curve` measures."""


@app.command(
    epilog=examples(
        "unicl mix runs/first runs/tuned -o mixed", "unicl mix runs/first runs/tuned --curve --data corpus -o best"
    )
)
def mix(
    old: Annotated[
        str,
        typer.Argument(metavar="OLD", help=f"Model before fine-tuning. {MODEL_FORMS}.", autocompletion=complete_runs),
    ],
    new: Annotated[
        str,
        typer.Argument(
            metavar="NEW", help="Model after fine-tuning: a run or a checkpoint.", autocompletion=complete_runs
        ),
    ],
    alpha: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE,SHARE",
            help="Share of NEW, from 0 to 1; several, such as 0,0.25,0.5, are compared. Default: 0.5.",
        ),
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Compare the shares 0, 0.1, … 1.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", parser=output_folder, help="Write the mixture here; of several, the best."
        ),
    ] = None,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split to measure on. Default: val, else test.")
    ] = None,
    batch: Batch = 128,
    devices: Devices = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Average the weights before and after fine-tuning, which keeps abilities of the old model (WiSE-FT)."""
    del quiet
    alphas = parse_alphas(alpha, curve=curve)
    if out is None and not data and len(alphas) == 1:
        raise UniclError("mix: nothing to do", "write the mixture with -o DIR, or measure it with --data CORPUS")
    from unicl_cli.commands.output import check_before_loading, print_document
    from unicl_cli.launch.workers import run_on_devices
    from unicl_cli.storage.lock import check_unused

    if out is not None:
        check_unused(out, "choose another directory with -o")
    check_before_loading([old, new], data or ())

    def work(accelerator: Any) -> None:
        from unicl_cli.jobs.mix import mix_models as job
        from unicl_cli.jobs.mix import mix_tables
        from unicl_cli.launch.process import is_peer

        settings: dict[str, Any] = {"alphas": alphas, "out": out, "data": data, "split": split, "batch": batch}
        document = job((old, new), accelerator=accelerator, **settings)
        print_document(document, mix_tables, as_json=as_json)
        if out is not None and not as_json and not is_peer():
            print_path(out)

    run_on_devices(devices, work)


def parse_alphas(text: str | None, *, curve: bool) -> tuple[float, ...]:
    """Return the shares of NEW that the options name, sorted, each once."""
    if curve and text is not None:
        raise UniclError("--curve: cannot be combined with --alpha", "use one of them: --curve is --alpha 0,0.1,…,1")
    if text is None:
        return CURVE if curve else (0.5,)
    try:
        found = tuple(sorted({float(cell) for cell in text.split(",") if cell.strip()}))
    except ValueError as error:
        raise UniclError(
            f"--alpha {text}: not a list of numbers", "use for example --alpha 0.5, or --alpha 0,0.5,1"
        ) from error
    if not found or not all(0 <= share <= 1 for share in found):
        raise UniclError(f"--alpha {text}: outside of 0 to 1", "use 0 for OLD, 1 for NEW, or a number between")
    return found
