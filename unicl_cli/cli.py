"""`unicl`: the command tree, loaded only where it is used, and what a failure looks like from outside."""

import contextlib
import errno
import importlib
import importlib.metadata
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from unicl_cli import __version__, registry
from unicl_cli.commands import LOG, Debug, Quiet, Verbose, everywhere
from unicl_cli.errors import UniclError, did_you_mean, escape_control

BUILTIN = {
    "prepare": "Make a corpus of labels, captions and images.",
    "inspect": "Say what is in a corpus, a batch, a checkpoint or a run.",
    "train": "Train a recipe; the same command continues a cut run.",
    "eval": "Measure zero-shot accuracy and retrieval of a model.",
    "probe": "Fit a linear classifier on a model's image features.",
    "mix": "Mix a model and its fine-tuned self, and find the best share.",
    "zeroshot": "Classify images by class names.",
    "bench": "Measure speed and memory, alone or against open_clip.",
    "runs": "List the trainings of a folder, or show one.",
    "recipes": "List, show, copy, check and compare recipes.",
    "plugins": "List the parts that recipes can name, and what they take.",
    "doctor": "Check whether this machine can train, and say what is in the way.",
}
"""Name and help of each first-party command; its module is `unicl_cli.commands.NAME`."""
REPORT = "This is a fault of unicl: please report it with the lines above and `unicl doctor --json`."
FIXABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""A full disk, or a place that may not be written, wherever it was met."""


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
        _add_global_options(command)
        return command


def _add_global_options(command: Any) -> None:
    """Gives a command, or each one of a group, the options that count everywhere, where it has none of that name."""
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            _add_global_options(inner)
        return
    taken = {spelling for param in command.params for spelling in param.opts}
    command.params += [p for p in typer.main.get_command(everywhere).params if not taken & set(p.opts)]


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

    def invoke(self, ctx: Any) -> None:
        super().invoke(ctx)  # what a command returns is not its exit status


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
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Unified image-text-label learning: prepare a corpus, train a recipe, measure and use the model."""
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)  # a command's own --quiet comes after this


def run(argv: Sequence[str]) -> int:
    """The exit status of a command line; UniclError and bugs come through as exceptions."""
    try:
        status: Any = app(args=list(argv), prog_name="unicl", standalone_mode=False)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer has made it a 1
            raise stop.__context__ from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        return _raise_usage_error(error)
    return status if isinstance(status, int) else 0


def _raise_usage_error(error: Any) -> int:
    """What typer says of a wrong command line, in one line; raises it as UniclError."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, printed by now
        return 2
    context = error.ctx
    message, nearest = error.format_message().rstrip("."), ""
    if hasattr(error, "possibilities") and context:  # no such option: typer's own list is long
        known = [option for param in context.command.params for option in param.opts]
        message, nearest = error.message, did_you_mean(error.option_name, known)
    message = re.sub(r"Invalid value for |Input (?=should)|, unable to parse.*", "", message)
    message = message.replace("argument(s)", "arguments")
    message = message[:1].lower() + message[1:].replace(". Did you mean", "; did you mean")
    if not context:
        raise UniclError(f"{message}{nearest}", "see unicl COMMAND --help") from error
    usage = " ".join(context.get_usage().removeprefix("Usage: ").translate({ord("{"): None, ord("}"): None}).split())
    raise UniclError(f"{context.command_path}: {message}{nearest}", f"usage: {usage}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    _reopen_closed_streams()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin halve the speed of a busy machine
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is one line, not two stacks in C++
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no crash
    status = _run_reporting_errors(sys.argv[1:] if argv is None else argv)
    if argv is None and "RANK" in os.environ:
        from unicl_cli.launch.process import end_worker  # costs `unicl --help` a tenth of its time

        end_worker(status)
    return status


def _run_reporting_errors(argv: Sequence[str]) -> int:
    """The exit status: what a user can fix is one line, anything else keeps its traceback (1)."""
    try:
        status = run(argv)
        sys.stdout.flush()
    except UniclError as error:
        return _print_error(error)
    except BrokenPipeError:  # `unicl … | head`: the reader has had enough
        _discard_stdout()
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FIXABLE:
            return _print_error(_as_write_error(error))
        error.add_note(REPORT)
        raise
    return status


def _reopen_closed_streams() -> None:
    """What was closed (``>&-``) leads nowhere: else the next file that is opened would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: `number`
            setattr(sys, name, os.fdopen(handle, "r" if name == "stdin" else "w", encoding="utf-8"))


def _as_write_error(error: OSError) -> UniclError:
    if error.filename is None:  # it may be stdout itself
        _discard_stdout()
    return UniclError(f"{error.filename or 'output'}: {error.strerror}", "free some space, or write to another place")


def _print_error(error: UniclError) -> int:
    if os.environ.get("UNICL_DEBUG"):
        traceback.print_exc()
    if os.environ.get("RANK", "0") == "0":  # each process of a run comes here; the first one speaks
        hint = f"\n  hint: {escape_control(error.hint)}" if error.hint else ""
        sys.stderr.write(f"error: {escape_control(error.message)}{hint}\n")
    return error.exit_code


def _discard_stdout() -> None:
    """Nobody reads it: what is left goes nowhere, so that Python does not complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # no real file, as in a test
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
