"""`unicl runs`: the trainings of a folder, or one of them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Json, completion
from unicl_cli.errors import plain
from unicl_cli.runs.folder import RUNS

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List the trainings of a folder, or show one.")


@app.command()
def ls(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the runs lie.")] = RUNS, as_json: Json = False
) -> None:
    """List runs: how far each one is, how fast, and how good; a lost one ended without a word."""
    from unicl_cli.jobs.runs import table_lines
    from unicl_cli.runs.status import list_runs

    found = list_runs(folder)
    if as_json:
        typer.echo(json.dumps({"schema": "unicl/runs/1", "runs": found}, indent=1, allow_nan=False))
        return
    for line in table_lines(found):
        typer.echo(plain(line))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)],
    as_json: Annotated[bool, typer.Option("--json", help="The run's status.json.")] = False,
) -> None:
    """Show one run: its state, the curve of its loss, its validations, and the command that goes on."""
    from unicl_cli.jobs.runs import describe_run
    from unicl_cli.runs.status import read_status

    status = read_status(run)
    if as_json:
        typer.echo(json.dumps(status, indent=1, allow_nan=False))
        return
    for line in describe_run(run, status):
        typer.echo(plain(line))
