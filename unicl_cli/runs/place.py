"""The run directory of a recipe: its path, and the check that what it holds belongs to the recipe."""

import os
import re
from collections.abc import Mapping
from datetime import date
from glob import escape
from pathlib import Path
from typing import Any

from unicl_cli.core.checkpoint_files import list_folders
from unicl_cli.data.manifest import MANIFEST, PLAN
from unicl_cli.errors import UniclError
from unicl_cli.problems import quote_value
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stages_of
from unicl_cli.recipe.text import compare_recipes, recipe_hash, result_keys
from unicl_cli.runs.folder import CHECKPOINTS, FILES, FOLDERS, LOGS, META, RESOLVED, RUN_LOCK, is_marked
from unicl_cli.storage.lock import check_unused, is_lock

_WORKER_LOGS = re.compile(r"unicl_\w{8}")
"""The names of the folders in ``LOGS``, as torch elastic makes them."""


def run_path(recipe: Recipe) -> Path:
    """Return `run_dir`, its placeholders filled in; with `{date}`, the newest unfinished run of the recipe if any."""
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
    """Return whether ``run`` is an unfinished training of this recipe."""
    first, folder, _ = stages_of(recipe, run)[0]
    try:
        same = recipe_hash(load(str(folder / RESOLVED))) == recipe_hash(first)
    except UniclError:
        return False
    return same and not (run / META).is_file()


def check_run_dir(run: Path) -> None:
    """Raise UniclError unless ``run`` is new, empty or a run: a training replaces and deletes files in it."""
    hint = "choose a new or empty directory with --run-dir"
    if (run / MANIFEST).exists() or (run / PLAN).exists():
        raise UniclError(f"{run}: is a corpus, not a run directory", hint)
    if not is_marked(run):
        check_unused(run, hint, _is_beginning)


def _is_beginning(path: Path) -> bool:
    """Return whether ``path`` is what a training makes before it marks its run: the lock, the logs of workers."""
    if path.name == RUN_LOCK:
        return is_lock(path)
    if path.name != LOGS or path.is_symlink() or not path.is_dir():
        return False
    return all(_WORKER_LOGS.fullmatch(log.name) and log.is_dir() for log in path.iterdir())


def is_finished(recipe: Recipe, run: Path) -> bool:
    """Return whether ``run`` holds the finished training of this recipe. UniclError if it holds another recipe's."""
    for stage, folder, _ in stages_of(recipe, run):
        check_places(folder)
        check_same_recipe(stage, folder)
    return (run / META).is_file()


def check_places(run: Path) -> None:
    """Raise UniclError if something else stands where a training will write a file or a folder of the run."""
    for name in FILES:
        path = run / name
        if os.path.lexists(path) and not path.is_file():
            raise UniclError(f"{path}: not a regular file", "move it away, or give another --run-dir")
    for name in FOLDERS:
        path = run / name
        if os.path.lexists(path) and not path.is_dir():
            raise UniclError(f"{path}: not a folder", "move it away, or give another --run-dir")


def check_same_recipe(recipe: Recipe, run: Path) -> None:
    """Raise UniclError if ``run`` was trained with a recipe that gives other numbers."""
    if not _is_comparable(run):
        return
    found = find_differences(run, recipe)
    if found:
        raise UniclError(
            f"{run}: was trained with another recipe ({format_differences(found)})",
            "give another --run-dir, or use the old recipe",
        )


def _is_comparable(run: Path) -> bool:
    """Return whether ``run`` has a recipe, and weights: without them there is nothing to mix with other numbers."""
    return (run / RESOLVED).is_file() and (bool(list_folders(run / CHECKPOINTS)) or (run / META).is_file())


def find_differences(run: Path, recipe: Recipe) -> dict[str, tuple[Any, ...]]:
    """Return the keys in which the recipe of a run differs, with its value and the new one.

    Raises FileNotFoundError if the run has no recipe, UniclError for a damaged one.
    """
    written = run / RESOLVED
    if not written.is_file():
        raise FileNotFoundError(written)
    return compare_recipes(result_keys(load(str(written))), result_keys(recipe))


def format_differences(found: Mapping[str, tuple[Any, ...]]) -> str:
    """Return `find_differences` in words."""
    return ", ".join(f"{key}: {quote_value(then)} -> {quote_value(now)}" for key, (then, now) in found.items())
