"""The first-party commands, one module each, and the options that every command takes."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands.completion import complete_runs

LOG = logging.getLogger("unicl_cli")


def _quieten(wanted: bool) -> bool:
    if wanted:
        LOG.setLevel(logging.WARNING)
    return wanted


def _debug(wanted: bool) -> bool:
    if wanted:
        os.environ["UNICL_DEBUG"] = "1"  # for `main` and for worker processes
    return wanted


def _listen(wanted: bool) -> bool:
    if wanted:
        logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO)  # to stderr
    return wanted


Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_quieten, help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_listen, help="Also what the libraries report.")]
Debug = Annotated[
    bool, typer.Option("--debug", envvar="UNICL_DEBUG", callback=_debug, help="Show the traceback of an error.")
]
MODEL_FORMS = "A run, a checkpoint, open_clip:NAME/TAG, local-dir:PATH or hf-hub:ORG/REPO"
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help=f"{MODEL_FORMS}; default: the run that finished last.", autocompletion=complete_runs
    ),
]
SameModel = Annotated[
    str | None, typer.Option("--model", help="The same as the first argument.", autocompletion=complete_runs)
]
Template = Annotated[
    list[str] | None, typer.Option(help="A prompt like 'a photo of a {}.', a list's name (clip80, none) or a file.")
]
Batch = Annotated[int, typer.Option(min=1, help="Images that each process encodes at once.")]
Devices = Annotated[str, typer.Option(help="auto, a number of GPUs, or cpu:N for N processes.")]
RawWeights = Annotated[bool, typer.Option("--raw-weights", help="Not their moving average.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="A file for the JSON.")]

everywhere = typer.Typer(add_completion=False)
"""Its options are added to each command: they count before the command's name and after it."""


@everywhere.command()
def _everywhere(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", callback=_quieten, hidden=True, expose_value=False)] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", callback=_listen, hidden=True, expose_value=False)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", callback=_debug, hidden=True, expose_value=False)] = False,
) -> None: ...
