"""`unicl plugins`: the parts that recipes and commands can name."""

import inspect
import json
from typing import Annotated

import typer

from unicl_cli import registry
from unicl_cli.errors import UniclError, did_you_mean

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="List the parts that recipes can name, and what they take."
)
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]


def _kind(kind: str) -> str:
    if kind not in registry.KINDS:
        kinds = ", ".join(registry.KINDS)
        raise UniclError(f"no kind of plugin '{kind}'{did_you_mean(kind, registry.KINDS)}", f"kinds are {kinds}")
    return kind


@app.command()
def ls(
    kind: Annotated[str | None, typer.Argument(help="encoders, datasets, losses or commands; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """List parts with their origin and state; a broken one says why."""
    kinds = registry.KINDS if kind is None else [_kind(kind)]
    rows = [row for item in kinds for row in registry.listing(item)]
    if as_json:
        document = {"schema": "unicl/plugins/1", "plugins": [row._asdict() for row in rows]}
        typer.echo(json.dumps(document, indent=1))
        return
    for row in rows:
        origin = " ".join(filter(None, (row.dist, row.version)))
        typer.echo(f"{row.kind:<9} {row.name:<14} {origin:<20} {row.state}")


@app.command()
def show(kind: str, name: str, as_json: Json = False) -> None:
    """Show where a part comes from, what it does and what it takes."""
    entry = registry.find(_kind(kind), name)
    part = registry.get(kind, name)
    about = inspect.getdoc(part) if inspect.isfunction(part) else None
    place = f"{inspect.getsourcefile(part)}:{inspect.getsourcelines(part)[1]}" if inspect.isfunction(part) else None
    options = registry.arguments(kind, name) if inspect.isfunction(part) else {}
    if as_json:
        arguments = [
            {"name": option, "type": written, "required": default is inspect.Parameter.empty}
            | ({} if default is inspect.Parameter.empty else {"default": registry.plain(default)})
            for option, (written, default) in options.items()
        ]
        facts = {"kind": kind, "name": entry.name, "dist": entry.dist, "version": entry.version, "value": entry.value}
        document = {"schema": "unicl/plugins/1", **facts, "about": about, "file": place, "arguments": arguments}
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(f"{entry.name}: {registry.KINDS[kind]} of {entry.origin}, {entry.value}")
    if place:
        typer.echo(place)
    if about:
        typer.echo(f"\n{about}\n")
    for option, (written, default) in options.items():
        given = "" if default is inspect.Parameter.empty else f" = {json.dumps(registry.plain(default))}"
        typer.echo(f"  {option}: {written}{given}")
