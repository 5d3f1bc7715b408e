"""`unicl plugins`: a list of the parts that recipes and commands can name, with their options."""

import inspect
import os
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.models import ArgumentInfo

from unicl_cli import binding, registry
from unicl_cli.commands import Json, completion, examples
from unicl_cli.errors import UniclError, did_you_mean, print_line
from unicl_cli.option_types import type_text
from unicl_cli.pages.text import align_columns, terminal_width
from unicl_cli.storage.json_output import format_json, print_json

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List the parts that recipes can name, with their options.",
    epilog=examples("unicl plugins ls", "unicl plugins show losses unicl"),
)
TOWER = (
    "freeze: bool | all | {unlock: N} = false, lr_scale = 1.0, layer_decay = 1.0, lora: {rank, alpha, dropout, targets}"
)
USE = {
    "encoders": "in a recipe: name: {name}, under model.image, model.text or model itself",
    "losses": "in a recipe: loss: {name}, or loss: {{name: {name}, OPTION: VALUE}}",
    "datasets": "unicl prepare --labels '{name}?OPTION=VALUE&OPTION=VALUE' (or --captions, --images)",
    "evaluators": "unicl eval MODEL --evaluator {name}",
    "commands": "unicl {name} --help",
}


class Option(NamedTuple):
    """An option of a part; ``default`` is ``inspect.Parameter.empty`` for a required one."""

    name: str
    type: str
    default: Any
    about: str | None = None

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def document(self) -> dict[str, Any]:
        facts = {"name": self.name, "type": self.type, "required": self.required}
        default = {} if self.required else {"default": binding.as_plain_data(self.default)}
        return facts | default | ({"about": self.about} if self.about else {})

    def lines(self) -> list[str]:
        given = "" if self.required else f" = {format_json(binding.as_plain_data(self.default))}"
        return [f"  {self.name}: {self.type}{given}", *([f"      {self.about}"] if self.about else [])]


def _check_kind(kind: str) -> str:
    """Return ``kind``, or raise UniclError if there is not such a kind."""
    if kind not in registry.KINDS:
        kinds = ", ".join(registry.KINDS)
        raise UniclError(f"unknown kind of plugin '{kind}'{did_you_mean(kind, registry.KINDS)}", f"use {kinds}")
    return kind


def _environment() -> dict[str, Any]:
    """Return the environment that is searched for parts: plugins installed in another one are not seen."""
    off = os.environ.get("UNICL_NO_PLUGINS", "")
    return {"interpreter": sys.executable, "prefix": sys.prefix, "interface": registry.API, "off": off}


@app.command(epilog=examples("unicl plugins ls", "unicl plugins ls losses"))
def ls(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="encoders, datasets, losses, evaluators or commands. Default: all.",
            autocompletion=completion.complete_kinds,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List parts with their origin and state; a broken part is listed with its error."""
    kinds = registry.KINDS if kind is None else [_check_kind(kind)]
    rows = [row for item in kinds for row in registry.list_parts(item)]
    place = _environment()
    if as_json:
        document = {"schema": "unicl/plugins/1", **place, "plugins": [row._asdict() for row in rows]}
        print_json(document, 1)
        return
    lines = [(row.kind, row.name, " ".join(filter(None, (row.dist, row.version))), row.state) for row in rows]
    for line in align_columns(lines, terminal_width()):
        print_line(line)
    print_line("")
    print_line(f"installed in {place['prefix']} ({place['interpreter']}), plugin interface {place['interface']}")


@app.command(epilog=examples("unicl plugins show losses unicl", "unicl plugins show datasets folder"))
def show(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="encoders, datasets, losses, evaluators or commands.",
            autocompletion=completion.complete_kinds,
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name in `unicl plugins ls`, or dist/name if two plugins have it.",
            autocompletion=completion.complete_parts,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show a part's origin, purpose, options and use."""
    entry = registry.find(_check_kind(kind), name)
    part = registry.get(kind, name)
    about, place, options = _describe_command(part) if kind == "commands" else _describe_factory(part, kind, name)
    use = USE[kind].format(name=name)
    if as_json:
        facts = {"kind": kind, "name": entry.name, "dist": entry.dist, "version": entry.version, "value": entry.value}
        arguments = [option.document() for option in options]
        document = {"schema": "unicl/plugins/1", **facts, "about": about, "file": place, "use": use}
        print_json({**document, "arguments": arguments}, 1)
        return
    print_line(f"{entry.name}: {registry.KINDS[kind]} of {entry.origin}, {entry.value}")
    if place:
        print_line(place)
    for line in ["", *about.split("\n"), ""] if about else [""]:
        print_line(line)
    for option in options:
        for line in option.lines():
            print_line(line)
    if kind == "encoders":
        print_line(f"  inside a model also: {TOWER}")
    print_line("")
    print_line(use)


def _describe_factory(part: Any, kind: str, name: str) -> tuple[str | None, str | None, list[Option]]:
    """Return docstring, file:line and options of a factory function."""
    options = [Option(option, *facts) for option, facts in binding.arguments(kind, name).items()]
    return inspect.getdoc(part), f"{inspect.getsourcefile(part)}:{inspect.getsourcelines(part)[1]}", options


def _describe_command(part: Any) -> tuple[str | None, str | None, list[Option]]:
    """Return help, file:line and options of a command, or the commands of a group. UniclError for anything else."""
    if not isinstance(part, typer.Typer):
        raise UniclError("entry point: not a typer.Typer", "see docs/plugins.md")
    command: Any = typer.main.get_command(part)
    if hasattr(command, "commands"):
        inner = [Option(name, "command", inspect.Parameter.empty, each.help) for name, each in command.commands.items()]
        return command.help, None, inner
    callback: Any = part.registered_commands[0].callback
    hints = typing.get_type_hints(callback, include_extras=True)
    options = [_describe_option(item, hints[item.name]) for item in inspect.signature(callback).parameters.values()]
    return command.help, f"{inspect.getsourcefile(callback)}:{inspect.getsourcelines(callback)[1]}", options


def _describe_option(item: inspect.Parameter, hint: Any) -> Option:
    """Return a parameter of a command, spelt as on the command line."""
    info: Any = next(iter(getattr(hint, "__metadata__", ())), None)
    kebab = item.name.replace("_", "-")
    spelt = f"--{kebab}" if item.default is not item.empty else kebab.upper()
    if isinstance(info, ArgumentInfo):
        spelt = kebab.upper()
    elif info is not None and isinstance(
        info.default, str
    ):  # in Annotated, typer takes the first spelling for a default
        spelt = ", ".join((info.default, *info.param_decls))
    default = str(item.default) if isinstance(item.default, Path) else item.default
    return Option(spelt, type_text(hint), default, getattr(info, "help", None))
