"""The first-party commands, one module each, and the options that several of them share."""

import logging
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands.completion import complete_runs
from unicl_cli.errors import UniclError
from unicl_cli.storage.remote import output_of

LOG = logging.getLogger("unicl_cli")
COMPUTE = "Compute"
OUTPUT = "Output"
_SLASHES = tuple(slash for slash in (os.sep, os.altsep) if slash)
"""Panels of `--help` that every command with many options has, besides its own."""


def examples(*lines: str) -> str:
    """Return the end of a command's help: ``lines`` to copy, each of which runs as it stands."""
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\nExamples:\n{shown}"  # typer would strip the indentation if the text began with its second line


def output_file(text: str) -> Path:
    """Return the path of a file to write. UniclError for ``-`` and for a new folder, which a Path does not show."""
    if text == "-":
        raise UniclError("output '-': not the name of a file", "name a file, or /dev/stdout for standard output")
    if not text or (text.endswith(_SLASHES) and not Path(text).is_dir()):
        raise UniclError(f"output '{text}': not the name of a file", "add the name of the file to write")
    _refuse_url(text)
    return Path(text)


def _refuse_url(text: str) -> None:
    """Raise UniclError for a URL, which would become a folder called `s3:`."""
    if re.match(r"[a-z][a-z0-9+.:-]+://", text, re.IGNORECASE):
        hint = "write to a folder of this machine, then copy it there"
        raise UniclError(f"output '{text}': is on another file system", hint)


def output_folder(text: str | Path) -> Path:
    """Return the path of a folder to write. UniclError for ``-``, which other programs take for a stream."""
    _check_folder_name(str(text))
    _refuse_url(str(text))
    return Path(text)


def corpus_folder(text: str | Path) -> Path:
    """Return the path of a corpus to write, on this machine or another file system. UniclError as `output_folder`."""
    _check_folder_name(str(text))
    return output_of(str(text))


def _check_folder_name(text: str) -> None:
    if text in ("", "-"):
        raise UniclError(f"output '{text}': not the name of a folder", "name a folder")


def _set_quiet(given: bool) -> bool:
    if given:
        LOG.setLevel(logging.WARNING)
    return given


def _set_debug(given: bool) -> bool:
    if given:
        os.environ["UNICL_DEBUG"] = "1"  # for `main` and for worker processes
    return given


def _show_library_logs(given: bool) -> bool:
    if given:
        logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO)  # to stderr
    return given


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_set_quiet, help="Show no progress.", rich_help_panel=OUTPUT)
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_show_library_logs,
        help="Also show log output from libraries.",
        rich_help_panel=OUTPUT,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="UNICL_DEBUG",
        callback=_set_debug,
        help="Show the traceback of an error.",
        rich_help_panel=OUTPUT,
    ),
]
MODEL_FORMS = "A run, a checkpoint, open_clip:NAME/TAG, local-dir:PATH or hf-hub:ORG/REPO"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=OUTPUT)]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=f"{MODEL_FORMS}. Default: the run that finished last.",
        autocompletion=complete_runs,
    ),
]
SameModel = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Same as the argument MODEL.", autocompletion=complete_runs),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="CORPUS", help="Corpus to measure on; may be repeated. Default: those of the recipe."
    ),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split to measure on. Default: test, else val.")]
Candidates = Annotated[
    str,
    typer.Option(
        metavar="CLASSES",
        help="Classes to choose from: all (of the corpus and the model), corpus, a,b,c or @FILE.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT|NAME|FILE",
        help="Prompt template such as 'a photo of a {}.', name of a list (clip80, clip7, none) or text file; "
        "may be repeated.",
    ),
]
Batch = Annotated[
    int, typer.Option(min=1, metavar="N", help="Images that each process encodes at once.", rich_help_panel=COMPUTE)
]
Devices = Annotated[
    str,
    typer.Option(
        metavar="auto|N|cpu:N",
        help="All GPUs (auto; without one, the CPU), N GPUs, or N processes on the CPU.",
        rich_help_panel=COMPUTE,
    ),
]
RawWeights = Annotated[
    bool, typer.Option("--raw-weights", help="Use the trained weights, not their moving average (ema).")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        parser=output_file,
        help="Also write the JSON to this file.",
        rich_help_panel=OUTPUT,
    ),
]

everywhere = typer.Typer(add_completion=False)
"""Its options are added to each command: they count before the command's name and after it."""


@everywhere.command()
def _everywhere(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", callback=_set_quiet, hidden=True, expose_value=False)] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", callback=_show_library_logs, hidden=True, expose_value=False)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", callback=_set_debug, hidden=True, expose_value=False)] = False,
) -> None: ...
