"""`unicl runs`: a table of the runs in a folder, or the course of one."""

from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Json, completion, examples
from unicl_cli.errors import print_line
from unicl_cli.runs.folder import RUNS
from unicl_cli.storage.json_output import print_json

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List the training runs of a folder, or show one.",
    epilog=examples("unicl runs ls", "unicl runs show runs/first"),
)


@app.command(epilog=examples("unicl runs ls", "unicl runs ls runs --json"))
def ls(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the runs.")] = RUNS, as_json: Json = False
) -> None:
    """List runs with progress, speed and best result. The state 'lost' means that the process ended unexpectedly."""
    from unicl_cli.jobs.runs import table_lines
    from unicl_cli.runs.status import list_runs

    untouched = folder == RUNS and not folder.exists()  # nothing was trained here yet
    found = [] if untouched else list_runs(folder)
    if as_json:
        print_json({"schema": "unicl/runs/1", "runs": found}, 1)
        return
    for line in table_lines(found):
        print_line(line)


@app.command(epilog=examples("unicl runs show runs/first"))
def show(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.complete_runs)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the status.json of the run on stdout.")] = False,
) -> None:
    """Show one run: state, loss curve, validations, and the command that continues it."""
    from unicl_cli.jobs.runs import describe_run
    from unicl_cli.runs.status import read_status

    status = read_status(run)
    if as_json:
        print_json(status, 1)
        return
    for line in describe_run(run, status):
        print_line(line)
