"""Recipes of the models that are compared: the corpora they have in common, and the keys in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import compare_recipes, result_keys
from unicl_cli.runs.folder import RESOLVED, find_run
from unicl_cli.storage import hub

LABELS = ("name",)
"""Keys that name a run and change nothing in it."""


def read_recipe(model: str) -> Recipe | None:
    """Return the recipe of a run or checkpoint; None for published weights."""
    return None if hub.has_form(model) else load(str(find_run(model)[0] / RESOLVED))


def common_corpora(models: Sequence[str], recipes: Sequence[Recipe | None]) -> tuple[str, ...]:
    """Return the corpora that every recipe trains on; UniclError if they differ, or if there are none."""
    named = [(model, _corpora(recipe)) for model, recipe in zip(models, recipes, strict=True) if recipe is not None]
    hint = "name the corpora to compare on: --data CORPUS"
    if not named:
        raise UniclError("compare: none of the models names a corpus", hint)
    first, common = named[0]
    for model, corpora in named[1:]:
        if _places(corpora) != _places(common):
            raise UniclError(
                f"{first} and {model} were trained on different corpora: {', '.join(common)} and {', '.join(corpora)}",
                hint,
            )
    return common


def _corpora(recipe: Recipe) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.corpus for item in recipe.data.train))


def _places(corpora: Sequence[str]) -> set[Path]:
    return {Path(corpus).resolve() for corpus in corpora}


def changed_keys(recipes: Sequence[Recipe | None]) -> list[dict[str, Any]]:
    """Return ``{"key", "values"}`` for each key that results depend on and that is not the same in all recipes.

    ``values`` has an entry per model, None where the key or the recipe is missing.
    """
    known: list[Mapping[str, Any]] = [result_keys(recipe) for recipe in recipes if recipe is not None]
    if len(known) < 2:
        return []
    changed: list[dict[str, Any]] = []
    for key, values in compare_recipes(*known).items():
        if key not in LABELS:
            found = iter(values)
            changed.append({"key": key, "values": [None if recipe is None else next(found) for recipe in recipes]})
    return changed
