"""A recipe as a file to edit: what it sets and the common keys, each below its description."""

import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from unicl_cli.recipe.layers import find_recipe, read_layers, read_recipe_file
from unicl_cli.recipe.load import validate_recipe
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import as_mapping
from unicl_cli.yaml_lines import write_flow

COLUMNS = 100
COMMON: Mapping[str, Any] = {
    "name": None,
    "seed": None,
    "data": {
        "train": None,
        "mix": {"labels": None},
        "image_size": None,
        "augment": None,
        "text_for_labelled": None,
        "balance": None,
        "workers": None,
    },
    "model": {"name": None, "tokenizer": None, "init": None},
    "loss": None,
    "optim": {"name": None, "lr": None, "weight_decay": None, "clip_norm": None},
    "schedule": {"name": None, "warmup": None},
    "batch": {"size": None, "micro": None},
    "precision": None,
    "eval": None,
    "log": {"every": None, "trackers": None},
    "checkpoint": {"every": None, "minutes": None, "keep": None},
}
"""Keys that a copy has even where the recipe leaves them at their default."""
OPTIONS = {
    "image": "Image tower and its options: unicl plugins show encoders NAME lists them.",
    "text": "Text tower and its options; null = none.",
    "embed_dim": "Width of the space that images and texts share.",
    "arch": "Model of open_clip with its weights, as unicl eval takes it.",
}
"""Options of the models that recipes name, which have no separate description."""


def annotate(source: str) -> str:
    """Return the text of a recipe without `extends`, equal to it in every value, with a comment above each key."""
    file = find_recipe(source)
    lined = read_layers(file)
    whole = as_mapping(validate_recipe(lined))
    opening = [line for line in _opening_comment(read_recipe_file(file)) if "$schema=" not in line]
    head = [row for line in [*opening, "# docs/recipes.md has every key and part."] for row in _comment(line[1:], "")]
    body = _write_section(_add_common(lined.data, COMMON, whole), Recipe, 0)
    return "".join(f"{line}\n" for line in [*head, "", *body])


def _opening_comment(text: str) -> Iterator[str]:
    """Yield the comment lines before the first key."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line


def _comment(text: str, pad: str) -> list[str]:
    """Return ``text`` as comment lines of at most COLUMNS."""
    width = COLUMNS - len(pad) - 2
    return [f"{pad}# {line}" for line in textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)]


def _add_common(written: Any, common: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``written`` keys and the ``common`` ones from the ``whole`` recipe, in the order of the latter."""
    own: dict[str, Any] = dict(written) if isinstance(written, dict) else {}
    for key, inner in common.items():
        if isinstance(inner, Mapping) and isinstance(own.get(key, {}), dict):
            own[key] = _add_common(own.get(key, {}), inner, whole[key])
        elif key not in own:
            own[key] = whole[key]
    return {key: own[key] for key in sorted(own, key=list(whole).index) if key in whole}


def _write_section(data: Mapping[str, Any], schema: type[BaseModel] | None, depth: int) -> Iterator[str]:
    """Yield the lines of a mapping: above each key its description, sections and lists of sections in blocks."""
    pad = "  " * depth
    for key, value in data.items():
        field = schema.model_fields.get(key) if schema is not None else None
        section = None if field is None else _section_of(field.annotation)
        about = field.description if field is not None else None
        about = about or (section.__doc__ if section is not None else OPTIONS.get(key))
        yield from _comment(about or "", pad)
        if section is not None and isinstance(value, dict) and value:
            yield f"{pad}{key}:"
            yield from _write_section(value, section, depth + 1)
        elif section is not None and isinstance(value, list) and value and key in ("train", "eval"):
            yield f"{pad}{key}:"
            for number, item in enumerate(value):
                yield from _write_item(item, section if number == 0 else None, depth + 1)
        else:
            yield f"{pad}{key}: {write_flow(value)}"


def _write_item(item: Any, schema: type[BaseModel] | None, depth: int) -> Iterator[str]:
    """Yield an entry of a list: its dash stands before its first key."""
    lines = list(_write_section(item, schema, depth + 1)) if isinstance(item, dict) else [write_flow(item)]
    first = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("#"))
    pad = "  " * depth
    yield from (f"{pad}{line.lstrip()}" for line in lines[:first])
    yield f"{pad}- {lines[first].lstrip()}"
    yield from lines[first + 1 :]


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation holds, alone, in a list or in a union with None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in typing.get_args(annotation) if (found := _section_of(each)) is not None), None)
