"""`unicl recipes`: list, show, copy, check and compare recipes."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Json, completion, examples, output_file
from unicl_cli.commands.output import print_path
from unicl_cli.errors import UniclError, did_you_mean, escape_control, print_line, write_note
from unicl_cli.pages.text import align_columns, terminal_width
from unicl_cli.storage.json_output import format_json, print_json

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List, show, copy, check and compare recipes.",
    epilog=examples("unicl recipes ls", "unicl recipes cp my-labels mine.yaml", "unicl recipes validate mine.yaml"),
)
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Keys to change, such as optim.lr=1e-3.", autocompletion=completion.complete_overrides
    ),
]


First = Annotated[
    str,
    typer.Argument(
        metavar="A", help="A recipe file, or the name of a shipped recipe.", autocompletion=completion.complete_recipes
    ),
]
Second = Annotated[
    str, typer.Argument(metavar="B", help="Recipe to compare with.", autocompletion=completion.complete_recipes)
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a shipped recipe.",
        autocompletion=completion.complete_recipes,
    ),
]


@app.command(epilog=examples("unicl recipes ls", "unicl recipes ls finetune"))
def ls(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="FILTER", help="Words that the name or the description must have.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes of unicl and of installed plugins, or those with all the words of FILTER."""
    from unicl_cli.recipe.layers import shipped_recipes

    own = ("quickstart", "my-", "finetune")  # most people look for these: they come first
    files = shipped_recipes()
    names = sorted(files, key=lambda name: (not name.startswith(own), name))
    whole = {name: _about(files[name]) for name in names}
    about = {
        name: line
        for name, line in whole.items()
        if all(word.casefold() in f"{name} {line}".casefold() for word in words or ())
    }
    if not about:
        asked = " ".join(words or ())
        near = did_you_mean(asked, names)
        raise UniclError(f"recipes '{asked}': none of {len(names)} has these words{near}", "use fewer words, or none")
    if as_json:
        recipes = [{"name": name, "about": line} for name, line in about.items()]
        print_json({"schema": "unicl/recipes/1", "recipes": recipes}, 1)
        return
    for line in align_columns(list(about.items()), terminal_width()):
        print_line(line)


def _about(path: Path) -> str:
    """Return the first comment of a recipe that is for people, not for editors."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ") and "$schema" not in line), "")


@app.command(epilog=examples("unicl recipes show quickstart", "unicl recipes show quickstart optim.lr=1e-3 --resolved"))
def show(
    name: Source,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every key, and the place where its value was set.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print a recipe as written; with --resolved or with changes, print every key."""
    from unicl_cli.recipe.layers import find_recipe, read_recipe_file
    from unicl_cli.recipe.load import explain_values, load
    from unicl_cli.recipe.text import as_mapping

    if as_json:
        print_json({"schema": "unicl/recipes/1", "recipe": as_mapping(load(name, overrides or ()))}, 1)
    elif resolved or overrides:
        _print_text(explain_values(name, overrides or ()))
    else:
        _print_text(read_recipe_file(find_recipe(name)))


def _print_text(text: str) -> None:
    """Write a recipe: as it is for a file, each line visible on a terminal."""
    if sys.stdout.isatty():
        text = "".join(f"{escape_control(line)}\n" for line in text.expandtabs().splitlines())
    sys.stdout.write(text)


@app.command(epilog=examples("unicl recipes cp my-labels mine.yaml"))
def cp(
    name: Source,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", parser=output_file, help="Copy to write. Default: NAME.yaml in this folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe to a file for editing: the keys that it sets and the common ones, each with a comment."""
    from unicl_cli.commands.output import check_outputs
    from unicl_cli.recipe.annotate import annotate
    from unicl_cli.recipe.layers import find_recipe
    from unicl_cli.storage.files import is_written_through, write_output_data
    from unicl_cli.storage.json_output import report_write_error

    source, text = find_recipe(name), annotate(name)
    target = file or Path(source.name)
    if target.is_dir():
        target /= source.name
    with report_write_error("recipes cp", target):
        through = is_written_through(target)
    if target.suffix not in (".yaml", ".yml") and not through:
        target = target.with_name(f"{target.name}.yaml")
    if os.path.lexists(target) and not force and not through:
        raise UniclError(f"{target}: already exists", "use another name, or add --force")
    if not target.parent.is_dir():
        raise UniclError(f"{target}: cannot be written: {target.parent} is not a folder", "use another file")
    check_outputs(("recipes cp", target))
    with report_write_error("recipes cp", target):
        write_output_data(target, text)
    print_path(target)


@app.command(epilog=examples("unicl recipes validate recipe.yaml", "unicl recipes validate quickstart loss=clip"))
def validate(
    name: Source,
    overrides: Overrides = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also build the model, without weights or memory; needs the corpora.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the keys, values, parts and options of a recipe. A missing corpus is only a note on stderr."""
    from unicl_cli.build.corpora import check_corpora
    from unicl_cli.recipe.load import load
    from unicl_cli.recipe.text import recipe_hash

    recipe = load(name, overrides or ())
    if deep:
        from unicl_cli.jobs.train.stage_chain import check_stages

        check_corpora(recipe)
        check_stages(recipe, Path(recipe.run_dir))
    try:
        check_corpora(recipe)
        missing = None
    except UniclError as error:
        missing = error.message
        write_note(f"note: {error.message}")
    if as_json:
        facts = {"recipe": recipe.name, "hash": recipe_hash(recipe), "stages": max(1, len(recipe.stages))}
        print_json({"schema": "unicl/recipes/1", **facts, "data": missing or "ok"}, 1)
        return
    print_line(f"{name}: ok ({recipe.name}, {recipe_hash(recipe)[:8]})")


@app.command(epilog=examples("unicl recipes diff quickstart digits-ce"))
def diff(a: First, b: Second, as_json: Json = False) -> None:
    """Show the keys in which two resolved recipes differ."""
    from unicl_cli.recipe.load import load
    from unicl_cli.recipe.text import as_mapping, compare_recipes

    found = compare_recipes(as_mapping(load(a)), as_mapping(load(b)))
    if as_json:
        listed = [{"key": key, "a": before, "b": after} for key, (before, after) in found.items()]
        print_json({"schema": "unicl/recipes/1", "changes": listed}, 1)
        return
    for key, values in found.items():
        print_line(f"{key}: {' -> '.join('-' if value is None else format_json(value) for value in values)}")


@app.command("schema", epilog=examples("unicl recipes schema > recipe.schema.json"))
def print_schema() -> None:
    """Print the JSON schema of recipe files, for editors."""
    from unicl_cli.recipe.text import recipe_json_schema

    print_json(recipe_json_schema(), 1)
