"""The plugins that a run was trained with, kept in its ``env.json``, so that an error can say what is missing."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from unicl_cli import registry
from unicl_cli.contracts import Part
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.documents import Environment, Plugin, read_if_sound
from unicl_cli.runs.folder import ENVIRONMENT, RESOLVED


def list_plugins(recipe: Recipe) -> list[dict[str, str]]:
    """Return each part of the recipe that is not unicl's own: kind, name, and its file or its distribution."""
    parts = [("losses", recipe.loss), *(("encoders", part) for part in nested_parts(recipe.model.part))]
    parts += [("evaluators", part) for entry in recipe.eval for part in entry.evaluators or ()]
    found: list[dict[str, str]] = []
    for kind, part in parts:
        entry = registry.find(kind, part.name)
        if not entry.builtin:
            origin = (
                {"dist": entry.dist or "", "version": entry.version} if entry.version else {"file": entry.dist or ""}
            )
            found.append({"kind": kind, "name": part.name, **origin})
    return found


def nested_parts(part: Part) -> Iterator[Part]:
    """Yield a part and the parts in its options."""
    yield part
    for value in part.options.values():
        values = cast("Mapping[str, Any]", value).values() if isinstance(value, Mapping) else [value]
        for inner in values:
            if isinstance(inner, Part):
                yield from nested_parts(inner)


def load_run_recipe(run: Path, changes: Sequence[str] = ()) -> Recipe:
    """Load the resolved recipe of a run. The error of a missing plugin says where the plugin was."""
    try:
        return load(str(run / RESOLVED), changes)
    except UniclError as error:
        ways = [way for plugin in read_plugins(run) if (way := tell_way(plugin))]
        if not ways:
            raise
        raise UniclError(error.message, "; ".join(dict.fromkeys(ways))) from error


def read_plugins(run: Path) -> list[Plugin]:
    """Return the plugins in ``env.json``; none if it is damaged or older."""
    env = read_if_sound(run / ENVIRONMENT, Environment)
    return [] if env is None else env.plugins


def tell_way(plugin: Plugin) -> str | None:
    """Return what makes a plugin available; None if it is, or is not described."""
    if plugin.kind not in registry.KINDS or plugin.name in registry.names(plugin.kind):
        return None
    if plugin.file is None:
        return f"install {plugin.dist} ({plugin.version}), which has '{plugin.name}'" if plugin.dist else None
    gone = "" if os.path.isfile(plugin.file) else " (this file is gone)"  # noqa: PTH113 - False for any text
    return f"add the plugin file of this run: unicl --plugin {shlex.quote(plugin.file)} …{gone}"
