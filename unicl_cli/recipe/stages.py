"""Stages of a recipe, each a patch of it."""

from pathlib import Path

from unicl_cli.recipe.layers import merge
from unicl_cli.recipe.load import validate_recipe
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import as_mapping
from unicl_cli.yaml_lines import MarkedYaml


def stage_of(recipe: Recipe, number: int) -> Recipe:
    """Return the recipe of stage ``number``, counted from 0: the recipe with that patch, without stages."""
    whole = {**as_mapping(recipe), "stages": []}
    if recipe.stages:
        whole, _ = merge(whole, recipe.stages[number])
    return validate_recipe(MarkedYaml(whole, {}))


def stages_of(recipe: Recipe, run: Path) -> list[tuple[Recipe, Path, str | None]]:
    """Return (recipe, directory, model to start from) of each stage: earlier stages lie in folders of the run."""
    each = [stage_of(recipe, number) for number in range(len(recipe.stages))] or [recipe]
    folders = [run / f"stage-{n + 1}" for n in range(len(each) - 1)] + [run]
    starts = [each[0].model.init, *(str(folder) for folder in folders[:-1])]
    return list(zip(each, folders, starts, strict=True))
