"""`unicl recipes`: list, show, copy, check and compare recipes."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, show, copy, check and compare recipes.")
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. optim.lr=1e-3.")]


def _complete(incomplete: str) -> list[str]:
    from unicl_cli.layers import builtin_names

    return [name for name in builtin_names() if name.startswith(incomplete)]


Source = Annotated[str, typer.Argument(metavar="RECIPE", help="A file or a shipped name.", autocompletion=_complete)]


@app.command()
def ls(as_json: Json = False) -> None:
    """List the shipped recipes."""
    from unicl_cli.layers import builtin_folder, builtin_names

    about = {name: _about(builtin_folder() / f"{name}.yaml") for name in builtin_names()}
    if as_json:
        recipes = [{"name": name, "about": line} for name, line in about.items()]
        typer.echo(json.dumps({"schema": "unicl/recipes/1", "recipes": recipes}, indent=1))
        return
    width = max(map(len, about), default=0)
    for name, line in about.items():
        typer.echo(f"{name:<{width}}  {line}")


def _about(path: Path) -> str:
    """The first comment of a recipe that says something to people."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ") and "$schema" not in line), "")


@app.command()
def show(
    name: Source, resolved: Annotated[bool, typer.Option("--resolved", help="With every default written out.")] = False
) -> None:
    """Print a recipe, as written or resolved."""
    from unicl_cli.layers import find, read
    from unicl_cli.recipe import dump, load

    typer.echo(dump(load(name)) if resolved else read(find(name)), nl=False)


@app.command()
def cp(
    name: Source,
    file: Annotated[Path | None, typer.Argument(help="Default: NAME.yaml here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file.")] = False,
) -> None:
    """Copy a recipe to a file of your own."""
    from unicl_cli.layers import find, read

    source = find(name)
    text = read(source)
    target = file or Path(source.name)
    if target.is_dir():
        target /= source.name
    if target.suffix not in (".yaml", ".yml"):
        target = target.with_name(f"{target.name}.yaml")
    if target.exists() and not force:
        raise UniclError(f"{target} exists", "give another file, or --force")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UniclError(f"{target} cannot be written: {error.strerror}", "give another file") from error
    typer.echo(str(target))


@app.command()
def validate(name: Source, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a recipe: keys, values, names of parts and their options. Says on stderr which corpora are missing."""
    from unicl_cli.recipe import check_corpora, load, recipe_hash

    recipe = load(name, overrides or ())
    try:
        check_corpora(recipe)
        missing = None
    except UniclError as error:
        missing = error.message
        sys.stderr.write(f"note: {error.message}\n")
    if as_json:
        facts = {"recipe": recipe.name, "hash": recipe_hash(recipe), "stages": max(1, len(recipe.stages))}
        typer.echo(json.dumps({"schema": "unicl/recipes/1", **facts, "data": missing or "ok"}, indent=1))
        return
    typer.echo(f"{name}: ok ({recipe.name}, {recipe_hash(recipe)[:8]})")


@app.command()
def diff(a: Source, b: Source, as_json: Json = False) -> None:
    """Show which resolved keys of two recipes differ."""
    from unicl_cli.recipe import as_mapping, load

    one, two = _leaves(as_mapping(load(a))), _leaves(as_mapping(load(b)))
    keys = [key for key in {**one, **two} if (key in one, one.get(key)) != (key in two, two.get(key))]
    if as_json:
        changes = [{"key": key, "a": one.get(key), "b": two.get(key)} for key in keys]
        typer.echo(json.dumps({"schema": "unicl/recipes/1", "changes": changes}, indent=1))
        return
    for key in keys:
        before, after = (json.dumps(side[key]) if key in side else "-" for side in (one, two))
        typer.echo(f"{key}: {before} -> {after}")


def _leaves(value: Any, at: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        return {at: value}
    return {key: leaf for name, item in items for key, leaf in _leaves(item, f"{at}.{name}".lstrip(".")).items()}


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of recipe files, for editors."""
    from unicl_cli.recipe import schema

    typer.echo(json.dumps(schema(), indent=1))
