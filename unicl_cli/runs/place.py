"""Where the run of a recipe is written, and whether what is there is its own."""

from datetime import date
from glob import escape
from pathlib import Path

from unicl_cli.core.checkpoint_files import list_folders
from unicl_cli.errors import UniclError
from unicl_cli.problems import show
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stage_of, stages_of
from unicl_cli.recipe.text import changes, numbers, recipe_hash
from unicl_cli.runs.folder import CHECKPOINTS, META, RESOLVED


def run_path(recipe: Recipe) -> Path:
    """`run_dir` with its placeholders filled in; with `{date}` the newest unfinished run of this recipe, if any."""
    today = date.today().isoformat()
    if "{date}" in recipe.run_dir:
        pattern = Path(_fill(escape(recipe.run_dir), recipe, "????-??-??"))
        for old in sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))), reverse=True):
            if _is_unfinished(recipe, old):
                return old
    return Path(_fill(recipe.run_dir, recipe, today))


def _fill(text: str, recipe: Recipe, day: str) -> str:
    for placeholder, value in (("name", recipe.name), ("hash8", recipe_hash(recipe)[:8]), ("date", day)):
        text = text.replace(f"{{{placeholder}}}", value)
    return text


def _is_unfinished(recipe: Recipe, run: Path) -> bool:
    """Is ``run`` an unfinished training of this recipe?"""
    first = run / "stage-1" if len(recipe.stages) > 1 else run
    try:
        same = recipe_hash(load(str(first / RESOLVED))) == recipe_hash(stage_of(recipe, 0))
    except UniclError:
        return False
    return same and not (run / META).is_file()


def is_finished(recipe: Recipe, run: Path) -> bool:
    """Has the recipe been trained to its end there? UniclError where another one has begun in one of its folders."""
    for stage, folder, _ in stages_of(recipe, run):
        check_same_recipe(stage, folder)
    return (run / META).is_file()


def check_same_recipe(recipe: Recipe, run: Path) -> None:
    """A run directory holds one recipe: what changes its numbers needs another directory."""
    written = run / RESOLVED
    if not list_folders(run / CHECKPOINTS) and not (run / META).is_file():
        return  # what failed before its first checkpoint has left nothing to mix with
    other = changes(numbers(load(str(written))), numbers(recipe)) if written.is_file() else {}
    if not other:
        return
    listed = ", ".join(f"{key}: {show(then)} -> {show(now)}" for key, (then, now) in other.items())
    raise UniclError(f"{run}: was trained with another recipe ({listed})", "give another --run-dir, or the old recipe")
