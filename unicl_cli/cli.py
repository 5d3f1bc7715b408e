"""The `unicl` command: a tree of commands, each imported only when called, and the exit status of a command line."""

import errno
import gc
import importlib
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Container, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from unicl_cli import __version__, registry
from unicl_cli.commands import LOG, Debug, Quiet, Verbose, everywhere, examples
from unicl_cli.commands.completion import use_scripts_without_space
from unicl_cli.errors import READER_GONE, Stopped, UniclError, did_you_mean, escape_control
from unicl_cli.storage.streams import STDOUT, discard_stdout, protect_streams, reopen_closed_streams

BUILTIN = {
    "prepare": "Make a corpus of labels, captions and images.",
    "export-corpus": "Write a corpus as WebDataset tars or a `datasets` repository.",
    "inspect": "Show what is in a corpus, a batch, a checkpoint or a run.",
    "train": "Train a recipe; the same command continues it after an interruption.",
    "eval": "Measure zero-shot accuracy and retrieval of a model.",
    "compare": "Compare models on the same rows, with intervals and tests.",
    "probe": "Fit a linear classifier on a model's image features.",
    "mix": "Average the weights before and after fine-tuning (WiSE-FT).",
    "zeroshot": "Classify images by class names.",
    "search": "Find the images, texts or media of a corpus that are nearest to a query.",
    "export": "Write a model in the layout of open_clip, ready for the hub.",
    "bench": "Measure speed and memory, alone or against open_clip.",
    "runs": "List the training runs of a folder, or show one.",
    "recipes": "List, show, copy, check and compare recipes.",
    "plugins": "List the parts that recipes can name, with their options.",
    "doctor": "Check whether this machine can train, with a hint for each problem.",
}
"""Name and summary of each first-party command; its module is `unicl_cli.commands.NAME`, with _ for -."""
OTHER_NAMES = {
    **dict.fromkeys(("predict", "classify", "infer", "inference", "zero-shot"), "zeroshot"),
    **dict.fromkeys(("fit", "finetune", "fine-tune", "resume", "pretrain"), "train"),
    **dict.fromkeys(("evaluate", "test", "val", "score", "retrieval"), "eval"),
    **dict.fromkeys(("data", "dataset", "download", "convert", "import", "build", "index"), "prepare"),
    **dict.fromkeys(("linear-probe", "linprobe", "knn", "fewshot", "few-shot"), "probe"),
    **dict.fromkeys(("find", "query", "nearest", "retrieve"), "search"),
    **dict.fromkeys(("merge", "wise-ft", "ensemble", "average", "interpolate"), "mix"),
    **dict.fromkeys(("info", "describe", "stats", "look", "visualize", "report"), "inspect"),
    **dict.fromkeys(("list", "ls", "status", "history", "logs", "show"), "runs ls"),
    **dict.fromkeys(("recipe", "config", "configs", "cp", "copy", "init", "new"), "recipes"),
    **dict.fromkeys(("validate", "check"), "recipes validate"),
    **dict.fromkeys(("env", "system", "version", "diagnose"), "doctor"),
    **dict.fromkeys(("benchmark", "speed", "profile"), "bench"),
    **dict.fromkeys(("to-webdataset", "to-hf", "export-dataset", "export-data"), "export-corpus"),
    **dict.fromkeys(("publish", "push", "upload", "save", "to-open-clip"), "export"),
    **dict.fromkeys(("to-onnx", "deploy"), "onnx"),
}
"""Names that other tools have for a command -> the command; a command or plugin of that name comes first."""
REPORT = "This is a bug in unicl: please report it with the lines above and the output of `unicl doctor --json`."
FIXABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of writing that a user can fix, wherever they happen: a full disk, or a place without write permission."""
SHOWN_NAME = 60
"""Maximum number of letters that an error repeats of a name that is too long."""
HELP = ["-h", "--help"]
FEW_OPTIONS = 10
"""Up to this number of options, `--help` shows one panel."""


MAX_INTEGER = 2**31 - 1


class Stub(TyperCommand):
    """Name and summary of a command, whose module is imported when it is called."""

    def load(self) -> Any:
        """Import the command. Raises UniclError if it is broken."""
        name = str(self.name)
        if name in BUILTIN:
            app = importlib.import_module(f"unicl_cli.commands.{name.replace('-', '_')}").app
        else:
            app = registry.get("commands", name)
        if not isinstance(app, typer.Typer):
            raise UniclError(f"command '{name}' is not a typer.Typer", "see docs/plugins.md for an example")
        command = typer.main.get_command(app)
        command.name = name
        _tidy_command(command)
        return command


def _tidy_command(command: Any) -> None:
    """Add the options that every command takes, and tidy the help of a command or of each command in a group."""
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            _tidy_command(inner)
    else:
        taken = {spelling for param in command.params for spelling in param.opts}
        command.params += [p for p in typer.main.get_command(everywhere).params if not taken & set(p.opts)]
    _tidy(command.get_params(typer.Context(command, help_option_names=HELP)))


def _refuse_huge(ctx: Any, param: Any, value: Any) -> Any:
    """Refuse integers that do not fit 32 bits, as the callback of an option: torch, numpy and Arrow take no others."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int) and abs(each) > MAX_INTEGER:
            raise typer.BadParameter(f"{each} is too large: the limit is {MAX_INTEGER:,}.", ctx=ctx, param=param)
    return value


def _tidy(params: list[Any]) -> None:
    """Drop the types that typer writes behind switches and arguments, and the panels where there are few options."""
    for argument in params:
        argument.callback = argument.callback or _refuse_huge
        if argument.param_type_name == "argument":
            argument.display_type_rich = _hide_type
    options = [param for param in params if param.param_type_name == "option" and not param.hidden]
    for option in options:
        if option.is_flag:
            option.metavar = ""
        if len(options) <= FEW_OPTIONS:
            option.rich_help_panel = None


def _hide_type(ctx: Any) -> None:
    """Show no type: the name of an argument says what it is, and `<list[str]>` is Python's."""
    del ctx


class LazyGroup(TyperGroup):
    """A group of stubs: `unicl --help` imports none of its commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in BUILTIN.items():
            self.add_command(Stub(name, help=line, callback=None))
        if registry.may_have_commands():
            self.add_plugins()

    def add_plugins(self) -> None:
        """Add the commands of plugins, as far as they are known by now."""
        for entry in registry.table("commands"):
            if entry.name not in self.commands and not entry.builtin:
                self.add_command(Stub(entry.name, help=_summary(entry), callback=None, rich_help_panel="Plugins"))

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        _tidy(params)
        return params

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            self.add_plugins()  # also of those whose files `may_have_commands` cannot see
        if args and "/" in args[0] and args[0] not in self.commands:  # dist/name, after a clash
            self.add_command(Stub(args[0], callback=None))
        if args and args[0] not in self.commands and args[0] in OTHER_NAMES:
            raise UniclError(*_name_command(args[0], OTHER_NAMES[args[0]], self.commands))
        if args and isinstance(stub := self.commands.get(args[0]), Stub):
            self.commands[args[0]] = stub.load()
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> None:
        super().invoke(ctx)  # the value that a command returns is not its exit status


def _name_command(word: str, name: str, commands: Container[str]) -> tuple[str, str]:
    """Return the message and the hint for the ``word`` of another tool, whose command here is ``name``."""
    message = f"unicl: no command '{word}'; did you mean '{name}'?"
    if name.split()[0] in commands:
        return message, f"run unicl {name} --help to see what it takes"
    return message, f"install it first: it is the command of the plugin unicl-{name}"


def _summary(entry: registry.Entry) -> str:
    from importlib import metadata

    if entry.value.startswith(str(entry.dist)):
        return f"From {entry.dist}."
    return metadata.metadata(entry.dist)["Summary"] if entry.dist else ""


def _show_version(given: bool) -> None:
    if given:
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
    context_settings={"help_option_names": HELP},
    epilog=examples(
        "unicl prepare --labels photos --captions captions.tsv -o corpus",
        "unicl train recipe.yaml",
        'unicl zeroshot photo.jpg --classes "cat,dog,red fox"',
    ),
)

use_scripts_without_space()


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
            help="Load more parts from a Python file (also UNICL_PLUGINS, a path list).",
        ),
    ] = None,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Unified image-text-label learning: prepare a corpus, train a recipe, measure and use the model."""
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)  # a command's own --quiet comes after this


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit status. UniclError and bugs pass through as exceptions."""
    try:
        status: Any = app(args=list(argv), prog_name="unicl", standalone_mode=False)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer has turned it into status 1
            raise stop.__context__ from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        return _raise_usage_error(error)
    return status if isinstance(status, int) else 0


def _raise_usage_error(error: Any) -> int:
    """Raise typer's complaint about a wrong command line as a UniclError of one line; return 2 after a help page."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, which is printed already
        return 2
    context = error.ctx
    message, nearest = error.format_message().rstrip("."), ""
    if hasattr(error, "possibilities") and context:  # an unknown option: typer's own list is long
        known = [option for param in context.command.params for option in param.opts]
        message, nearest = error.message, _nearest_option(error.option_name, known, context.command)
    message = re.sub(r"Invalid value for |Input (?=should)|, unable to parse.*", "", message)
    message = message.replace("argument(s)", "arguments")
    message = message[:1].lower() + message[1:].replace(". Did you mean", "; did you mean")
    if not context:
        raise UniclError(f"{message}{nearest}", "run unicl COMMAND --help to see its options") from error
    usage = " ".join(context.get_usage().removeprefix("Usage: ").translate({ord("{"): None, ord("}"): None}).split())
    raise UniclError(f"{context.command_path}: {message}{nearest}", f"usage: {usage}") from error


def _nearest_option(option: str, known: Sequence[str], command: Any) -> str:
    """Return the did-you-mean for an unknown option: an option, or the recipe key where a command takes KEY=VALUE."""
    nearest = did_you_mean(option, known)
    if "overrides" not in {param.name for param in command.params}:
        return nearest
    from unicl_cli.problems import name_keys_below
    from unicl_cli.recipe.text import recipe_json_schema

    key = name_keys_below(option.lstrip("-"), recipe_json_schema(), 0.9)
    return f"{key} Keys of the recipe are written KEY=VALUE" if key else nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script `unicl` and return its exit status."""
    reopen_closed_streams()
    protect_streams()
    if argv is None:  # for all processes that this one starts: the current directory holds data, not code
        os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # threads that spin while they wait halve the speed of a busy machine
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection should be one line, not two C++ stacks
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a character outside the terminal's encoding must not crash
    status = _run_reporting_errors(sys.argv[1:] if argv is None else argv)
    if argv is None and "RANK" in os.environ:
        from unicl_cli.launch.process import end_worker  # importing it takes a tenth of the time of `unicl --help`

        end_worker(status)
    if argv is None:
        gc.freeze()  # the interpreter would search all of torch for cycles before it ends: a fifth of a short command
    return status


def _run_reporting_errors(argv: Sequence[str]) -> int:
    """Return the exit status. An error that a user can fix is printed as one line; any other keeps its traceback."""
    try:
        status = run(argv)
        sys.stdout.flush()
    except UniclError as error:
        return _print_error(error)
    except BrokenPipeError:  # `unicl … | head`: the reader has stopped reading
        discard_stdout()
        return READER_GONE
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _print_error(_as_name_error(error))
        if isinstance(error, OSError) and (error.errno in FIXABLE or error.filename == STDOUT):
            return _print_error(_as_write_error(error))
        error.add_note(REPORT)
        raise
    return status


def _as_write_error(error: OSError) -> UniclError:
    """Return the UniclError for an OSError of writing."""
    if error.filename == STDOUT:
        discard_stdout()
    return UniclError(f"{error.filename or 'output'}: {error.strerror}", "free some space, or write to another folder")


def _as_name_error(error: OSError) -> UniclError:
    """Return the UniclError for a name that no file can have, whichever argument, option or key it came from."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
    shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}…"
    return UniclError(f"{shown}: {error.strerror}", "check that it is the name of a file or folder, and shorten it")


def _is_peer() -> bool:
    """Return whether this is a process of a group other than the first; variables that make no sense are of none."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    sound = all(text.isdecimal() and len(text) < 10 for text in (rank, world))
    return sound and 0 < int(rank) < int(world)


def _print_error(error: UniclError) -> int:
    """Print one line and its hint on stderr; return the exit status. A stop that was asked for is not an error."""
    if os.environ.get("UNICL_DEBUG"):
        traceback.print_exc()
    if not _is_peer():  # every process of a run comes here; only the first prints
        kind, label = ("", "  ") if isinstance(error, Stopped) else ("error: ", "  hint: ")
        hint = f"\n{label}{escape_control(error.hint)}" if error.hint else ""
        sys.stderr.write(f"{kind}{error.visible()}{hint}\n")
    return error.exit_code
