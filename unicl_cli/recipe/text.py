"""Forms of a recipe as text: mapping, YAML, hash, JSON schema."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from unicl_cli import binding
from unicl_cli.contracts import Part
from unicl_cli.recipe.schema import Recipe
from unicl_cli.yaml_lines import leaves, write_yaml

YOUNGER: dict[str, dict[str, Any]] = {
    "model": {"heads": None},
    "data": {
        "balance": 0,
        "rows_per_class": None,
        "classes_per_batch": None,
        "ancestors": True,
        "caption_labels": "off",
    },
    "loss": {"own_text": 0.0, "weights": {}, "class_columns": None, "logit_adjustment": 0},
}
"""Keys that are younger than version 0.1, with the defaults at which a recipe keeps its hash."""
YOUNGER_EVAL: dict[str, Any] = {"candidates": "all", "evaluators": None}
"""Such keys of the entries of ``eval``."""


def compare_recipes(*recipes: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return dotted key -> its value in each recipe where they differ; None for a key that is missing."""
    found = [leaves(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for each in found for key in each)
    values = {key: tuple(each.get(key) for each in found) for key in keys}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def as_mapping(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as a recipe file would contain it, with every default."""
    parts: Any = {"model": {"part"}, "loss": True, "eval": {"__all__": {"evaluators"}}}
    whole: dict[str, Any] = binding.as_plain_data(recipe.model_dump(exclude=parts))
    whole["model"] |= binding.as_plain_data(recipe.model.part.options)
    whole["loss"] = as_named_options(recipe.loss)
    for entry, given in zip(whole["eval"], recipe.eval, strict=True):
        entry["evaluators"] = (
            None if given.evaluators is None else [as_named_options(each) for each in given.evaluators]
        )
    return {key: whole[key] for key in Recipe.model_fields}


def as_named_options(part: Part) -> dict[str, Any]:
    """Return a part as a recipe file would contain it."""
    return {"name": part.name, **binding.as_plain_data(part.options)}


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML; `load` of it gives an equal recipe."""
    return write_yaml(as_mapping(recipe))


def result_keys(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that the results of a run depend on.

    Left out: run_dir, log, checkpoint, parallel, data.workers, data.decoder and batch.micro.
    """
    whole = as_mapping(recipe)
    del whole["data"]["workers"], whole["data"]["decoder"], whole["batch"]["micro"]
    return {key: value for key, value in whole.items() if key not in ("run_dir", "log", "checkpoint", "parallel")}


def hashed_keys(recipe: Recipe) -> dict[str, Any]:
    """Return `result_keys` without those younger than version 0.1 at their defaults: a recipe keeps its hash."""
    whole = result_keys(recipe)
    for entry in whole["eval"]:
        for key, default in YOUNGER_EVAL.items():
            if entry[key] == default:
                del entry[key]
    for section, defaults in YOUNGER.items():
        for key, default in defaults.items():
            if whole[section].get(key, default) == default:
                whole[section].pop(key, None)
    whole["model"] = drop_prefix(whole["model"])
    return whole


def drop_prefix(value: Any) -> Any:
    """Return a part without the option ``prefix`` of text towers that have none, which is younger than version 0.1."""
    if not isinstance(value, dict):
        return value
    known = cast("dict[str, Any]", value)
    none = known.get("name") == "transformer" and known.get("prefix") is None
    return {key: drop_prefix(item) for key, item in known.items() if key != "prefix" or not none}


def recipe_hash(recipe: Recipe) -> str:
    """Return the sha256 (hex) of `hashed_keys`."""
    return hashlib.sha256(json.dumps(hashed_keys(recipe), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file, for editors."""
    whole = Recipe.model_json_schema()
    whole["properties"]["extends"] = {
        "type": "string",
        "description": "Recipe, by file or name, that this one is merged on top of.",
    }
    whole["required"] = []  # the recipe that it extends may have them
    return whole
