"""`unicl`: the command tree, loaded only where it is used, and what a failure looks like from outside."""

import importlib
import importlib.metadata
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from unicl_cli import __version__, registry
from unicl_cli.errors import UniclError

BUILTIN = {
    "prepare": "Make a corpus of labels, captions and pictures.",
    "train": "Train a recipe; the same command continues a cut run.",
    "eval": "Measure zero-shot accuracy and retrieval of a model.",
    "probe": "Fit a linear classifier on a model's image features.",
    "zeroshot": "Classify pictures by class names.",
    "recipes": "List, show, copy, check and compare recipes.",
    "plugins": "List the parts that recipes can name, and what they take.",
}
"""Name and help of each first-party command; its module is `unicl_cli.commands.NAME`."""


class Stub(TyperCommand):
    """A command's name and help; the command itself is imported when it is called."""

    def load(self) -> Any:
        name = str(self.name)
        if name in BUILTIN:
            app = importlib.import_module(f"unicl_cli.commands.{name}").app
        else:
            app = registry.get("commands", name)
        if not isinstance(app, typer.Typer):
            raise UniclError(f"command '{name}' is not a typer.Typer", "see docs/plugins.md")
        command = typer.main.get_command(app)
        command.name = name
        return command


class LazyGroup(TyperGroup):
    """All commands as stubs: `unicl --help` imports none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in BUILTIN.items():
            self.add_command(Stub(name, help=line, callback=None))
        self.add_plugins()

    def add_plugins(self) -> None:
        for entry in registry.table("commands"):
            if entry.name not in self.commands and not entry.builtin:
                self.add_command(Stub(entry.name, help=_summary(entry), callback=None, rich_help_panel="Plugins"))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and "/" in args[0] and args[0] not in self.commands:  # dist/name, after a clash
            self.add_command(Stub(args[0], callback=None))
        if args and isinstance(stub := self.commands.get(args[0]), Stub):
            self.commands[args[0]] = stub.load()
        return super().resolve_command(ctx, args)


def _summary(entry: registry.Entry) -> str:
    if entry.value.startswith(str(entry.dist)):
        return f"From {entry.dist}."
    return importlib.metadata.metadata(entry.dist)["Summary"] if entry.dist else ""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unicl {__version__}")
        raise typer.Exit


def _add_plugins(ctx: typer.Context, files: list[str] | None) -> list[str] | None:
    for file in files or ():
        registry.add_local(file)
    if files and isinstance(ctx.command, LazyGroup):
        ctx.command.add_plugins()
    return files


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="FILE",
            callback=_add_plugins,
            is_eager=True,
            help="A Python file with more parts (also UNICL_PLUGINS, a path list).",
        ),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="UNICL_DEBUG", help="Show the traceback of an error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More detail on stderr.")] = False,
) -> None:
    """Unified image-text-label learning: prepare a corpus, train a recipe, measure and use the model."""
    logging.getLogger("unicl_cli").setLevel(
        logging.WARNING if quiet else logging.DEBUG if verbose or debug else logging.INFO
    )
    if debug:
        os.environ["UNICL_DEBUG"] = "1"  # for `main` and for worker processes


def run(argv: Sequence[str]) -> int:
    """The exit status of a command line; UniclError and bugs come through as exceptions."""
    try:
        app(args=list(argv), prog_name="unicl")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: what a user can mend is one line, anything else keeps its traceback (exit status 1)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin halve the speed of a busy machine
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UniclError as error:
        if os.environ.get("UNICL_DEBUG"):
            traceback.print_exc()
        if os.environ.get("RANK", "0") == "0":  # each process of a run comes here; the first one speaks
            hint = f"\n  hint: {error.hint}" if error.hint else ""
            sys.stderr.write(f"error: {error.message}{hint}\n")
        return error.exit_code
    except Exception as error:
        error.add_note("This is a fault of unicl: please report it with the lines above and `unicl plugins ls --json`.")
        raise
