"""`unicl train RECIPE`: train, or continue."""

import json
import sys
from typing import Annotated

import typer

from unicl_cli.commands import Json, Quiet, completing
from unicl_cli.errors import is_quiet

app = typer.Typer(add_completion=False)


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file, or the name of a shipped one (unicl recipes ls).",
            autocompletion=completing.recipes,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Keys to change, e.g. optim.lr=1e-3.", autocompletion=completing.overrides
        ),
    ] = None,
    devices: Annotated[str, typer.Option(help="auto, a number of GPUs, or cpu:N for N processes.")] = "auto",
    run_dir: Annotated[str | None, typer.Option(help="Where to write; default runs/NAME-HASH.")] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or a checkpoint directory.")] = "auto",
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model to start the weights from, in any form of --model.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run: steps, samples, parameters, memory.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train from a recipe; the same command continues after any interruption."""
    del quiet  # its callback has seen it
    from unicl_cli.core.launch import StopFlag, is_peer, launched, processes, recorded, was_stopped
    from unicl_cli.recipe import check_corpora, check_shares, load, run_path

    changes = list(overrides or [])
    changes += [f"{key}={value}" for key, value in (("model.init", init), ("run_dir", run_dir)) if value is not None]
    checked = load(recipe, changes)
    check_corpora(checked)
    run = run_path(checked)
    if dry_run:
        from unicl_cli.jobs.dry_run import dry_run as describe

        describe(checked, run, devices, as_json=json_)
        return
    stop = StopFlag()
    stop.install()  # before anything slow is imported
    check_shares(checked, processes(devices)[0])
    code = launched(devices, sys.argv[1:], run / "logs", stop)
    if code is not None:
        raise typer.Exit(75 if was_stopped(run, code) else code)

    def work() -> None:
        from unicl_cli.jobs.train import Request, train

        stop.leave_early()
        train(checked, run, Request(devices, resume, is_quiet()), stop, source=recipe, overrides=changes)

    recorded(work)
    if not is_peer():
        typer.echo(json.dumps({"schema": "unicl/train/1", "run": str(run)}) if json_ else run)
