"""A recipe as text: mapping, YAML, hash, JSON schema."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from unicl_cli import registry
from unicl_cli.recipe.schema import (
    Recipe,
)
from unicl_cli.yaml_lines import leaves, write_yaml


def compare_recipes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in ``a``, value in ``b``) where they differ; None where one has no such key."""
    one, two = leaves(a), leaves(b)
    return {key: (one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)}


def as_mapping(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a recipe file says it, every default written out."""
    whole: dict[str, Any] = registry.as_plain_data(recipe.model_dump(exclude={"model": {"part"}, "loss": True}))
    whole["model"] |= registry.as_plain_data(recipe.model.part.options)
    whole["loss"] = {"name": recipe.loss.name, **registry.as_plain_data(recipe.loss.options)}
    return {key: whole[key] for key in Recipe.model_fields}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load` of it gives an equal recipe."""
    return write_yaml(as_mapping(recipe))


def hashed_keys(recipe: Recipe) -> dict[str, Any]:
    """What a run's numbers depend on: not run_dir, log, checkpoint, parallel, nor workers, decoder and batch.micro."""
    whole = as_mapping(recipe)
    del whole["data"]["workers"], whole["data"]["decoder"], whole["batch"]["micro"]
    return {key: value for key, value in whole.items() if key not in ("run_dir", "log", "checkpoint", "parallel")}


def recipe_hash(recipe: Recipe) -> str:
    """sha256 (hex) of ``numbers``."""
    return hashlib.sha256(json.dumps(hashed_keys(recipe), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recipe_json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    whole = Recipe.model_json_schema()
    whole["properties"]["extends"] = {"type": "string", "description": "A recipe (file or name) that this one changes."}
    whole["required"] = []  # what a recipe extends may have them
    return whole
