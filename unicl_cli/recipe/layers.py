"""Layers of a recipe: files by path or name, the recipes they extend, and overrides, merged into one mapping."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli import registry
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.problems import Loc, quote_value
from unicl_cli.yaml_lines import MarkedYaml, parse_yaml, read_value, write_flow

LENGTHS = ("steps", "epochs", "samples")
"""Keys for the length of a run: a recipe has exactly one, and that of a later layer replaces an earlier one."""
RESOLVED = "resolved.yaml"
"""The file in a run directory with its complete recipe."""
DEFAULT_PARTS = {"model": "two_tower", "loss": "unicl", "augment": "basic"}
"""Section -> part that it stands for without a `name`."""


class Change(NamedTuple):
    """Change of a key to a value that an option gave: plain data, which never passes through YAML."""

    key: str
    value: Any

    def __str__(self) -> str:
        """Return the KEY=VALUE that would make the same change."""
        return f"{self.key}={write_flow(self.value)}"


Override = str | Change
"""A change of a recipe: KEY=VALUE as its text, or the value of an option."""


def builtin_folder() -> Path:
    """Return the folder of the shipped recipes: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def builtin_names() -> list[str]:
    """Return the names of unicl's own recipes, sorted."""
    return sorted(path.stem for path in builtin_folder().glob("*.yaml"))


def shipped_recipes() -> dict[str, Path]:
    """Return the shipped recipes by name, sorted: unicl's own, and those in the folder `recipes` of installed plugins.

    Where two have one name, unicl's own counts, or else that of the plugin first in the alphabet.
    """
    homes = [builtin_folder(), *(folder / "recipes" for _, folder in sorted(registry.plugin_folders().items()))]
    found = {path.stem: path for home in reversed(homes) for path in home.glob("*.yaml")}
    return dict(sorted(found.items()))


def find_recipe(source: str, relative_to: Path = Path()) -> Path:
    """Return the file of a recipe: ``source`` is a path from ``relative_to`` on, or the name of a shipped recipe."""
    if (relative_to / source).is_file():
        return relative_to / source
    shipped = shipped_recipes()
    if source in shipped:
        return shipped[source]
    hint = "use a recipe file, or the name of a shipped recipe (unicl recipes ls lists them)"
    folder = relative_to / source
    if (folder / RESOLVED).is_file():
        raise UniclError(f"{source}: a run, not a recipe", f"use its recipe, {source}/{RESOLVED}")
    if folder.is_dir():
        what = "a corpus" if (folder / "manifest.json").is_file() else "a folder"
        raise UniclError(f"{source}: {what}, not a recipe", hint)
    raise UniclError(f"no recipe '{source}'{did_you_mean(source, list(shipped))}", hint)


def read_recipe_file(path: Path) -> str:
    """Return the text of a recipe file. Raises UniclError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UniclError(f"{path}: cannot be read: {error}", "use a recipe: a text file in YAML") from error


def require_mapping(lined: MarkedYaml, source: str) -> MarkedYaml:
    """Return ``lined`` itself. Raises UniclError unless it is a mapping."""
    if not isinstance(lined.data, dict):
        raise UniclError(f"{source}: not a mapping of keys", "run `unicl recipes show quickstart` to see an example")
    return lined


def read_layers(path: Path, children: tuple[Path, ...] = ()) -> MarkedYaml:
    """Return the recipe of a file merged on top of the recipes that it extends; ``children`` extend it."""
    child = require_mapping(parse_yaml(read_recipe_file(path), str(path)), str(path))
    data = {key: value for key, value in child.data.items() if key != "extends"}
    parent = child.data.get("extends")
    if parent is None:
        return MarkedYaml(data, child.marks)
    place = child.marks["extends",]
    if not isinstance(parent, str):
        raise UniclError(
            f"{place}: extends: should be a file or the name of a recipe, got {quote_value(parent)}",
            "run unicl recipes ls to see the names",
        )
    try:
        found = find_recipe(parent, path.parent)
    except UniclError as error:
        raise UniclError(f"{place}: extends: {error.message}", error.hint) from error
    if found.resolve() in (known := (*children, path.resolve())):
        raise UniclError(f"{place}: extends: '{parent}' extends itself in a circle", "remove one extends of the circle")
    return _merge_marked(read_layers(found, known), MarkedYaml(data, child.marks))


def _merge_marked(base: MarkedYaml, child: MarkedYaml) -> MarkedYaml:
    data, replaced = merge(base.data, child.data)
    return MarkedYaml(data, {**_drop_replaced(base.marks, replaced), **child.marks})


def _drop_replaced(marks: Mapping[Loc, str], replaced: Sequence[Loc]) -> dict[Loc, str]:
    """Return the marks without those below a replaced value: their lines no longer count."""
    return {loc: place for loc, place in marks.items() if not any(loc[: len(gone)] == gone for gone in replaced)}


def _is_part(loc: Loc) -> bool:
    """Return True if a part stands at ``loc``: in `model`, at `loss`, or at an `augment`."""
    inner = loc[2:] if loc[:1] == ("stages",) else loc
    return inner[:1] == ("model",) or inner == ("loss",) or inner[-1:] == ("augment",)


def as_part_mapping(value: Any) -> Any:
    """Return a part that is written as its bare name as a mapping: `clip` -> `{name: clip}`."""
    return {"name": value} if isinstance(value, str) else value


def merge(old: Any, new: Any, loc: Loc = ()) -> tuple[Any, list[Loc]]:
    """Return ``new`` on top of ``old``, and the places below which nothing of ``old`` is left.

    Mappings merge key by key; scalars, lists and parts of another name replace.
    """
    if _is_part(loc) and isinstance(old, str | dict) and isinstance(new, str | dict) and type(old) is not type(new):
        old, new = as_part_mapping(old), as_part_mapping(new)
    if not isinstance(old, dict) or not isinstance(new, dict) or (_is_part(loc) and _changes_part(old, new, loc)):
        return new, [loc]
    merged = _without_length(old) if not loc and length_keys(new) else dict(old)
    replaced: list[Loc] = []
    for key, value in new.items():
        if key in merged:
            merged[key], below = merge(merged[key], value, (*loc, key))
            replaced += below
        else:
            merged[key] = value
    return merged, replaced


def _changes_part(old: Mapping[str, Any], new: Mapping[str, Any], loc: Loc) -> bool:
    """Return True if ``new`` names another part than ``old``."""
    return "name" in new and new["name"] != old.get("name", DEFAULT_PARTS.get(str(loc[-1]), new["name"]))


def length_keys(data: Mapping[str, Any]) -> list[str]:
    """Return the keys that set the length of the run."""
    return [key for key in LENGTHS if data.get(key) is not None]


def _without_length(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in LENGTHS}


def parse_override(text: str) -> Change:
    """Return the change that KEY=VALUE makes; VALUE is YAML."""
    key, equals, written = text.partition("=")
    if not key or not equals:
        raise UniclError(f"override '{text}': not KEY=VALUE", "use for example optim.lr=1e-3")
    return Change(key, read_value(written, f"command line ({text})"))


def apply_overrides(lined: MarkedYaml, overrides: Sequence[Override]) -> MarkedYaml:
    """Return the recipe with each change merged on top, in order."""
    for override in overrides:
        key, value = parse_override(override) if isinstance(override, str) else override
        loc = _parse_key(lined.data, key, str(override))
        place = f"command line ({override})"
        data, replaced = _merge_at(lined.data, loc, value)
        if loc[0] in LENGTHS and value is not None:
            data = {**_without_length(data), loc[0]: value}
        above = dict.fromkeys(
            [loc[:depth] for depth in range(1, len(loc))], place
        )  # for keys that the file does not have
        here = dict.fromkeys(_locs_below(value, loc), place)
        lined = MarkedYaml(data, {**above, **_drop_replaced(lined.marks, replaced), **here})
    return lined


def _locs_below(value: Any, loc: Loc) -> list[Loc]:
    """Return ``loc`` and the places of all that ``value`` contains."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [loc, *(found for key, item in items for found in _locs_below(item, (*loc, key)))]


def _parse_key(data: Any, key: str, text: str) -> Loc:
    """Return the place that a dotted ``key`` of the override ``text`` names: `data.train.0.split`."""
    loc: list[str | int] = []
    for name in key.split("."):
        if isinstance(data, list):
            if not name.isdecimal() or int(name) >= len(data):
                raise UniclError(f"override '{text}': no '{name}' in a list of {len(data)}", "count the entries from 0")
            loc.append(int(name))
            data = data[int(name)]
        else:
            loc.append(name)
            data = data[name] if isinstance(data, dict) and name in data else None
    return tuple(loc)


def _merge_at(old: Any, loc: Loc, value: Any, depth: int = 0) -> tuple[Any, list[Loc]]:
    """Return ``old`` with ``value`` merged in at ``loc``, creating mappings on the way, and the places replaced.

    ``old`` lies at ``loc[:depth]``.
    """
    if depth == len(loc):
        return merge(old, value, loc)
    at, key = loc[:depth], loc[depth]
    if old is None:
        old = {}
    elif _is_part(at):
        old = as_part_mapping(old)
    if isinstance(old, list):
        entry, replaced = _merge_at(old[int(key)], loc, value, depth + 1)
        return [entry if position == key else item for position, item in enumerate(old)], replaced
    if not isinstance(old, dict):
        above = ".".join(map(str, at))
        raise UniclError(
            f"command line: {above} is {quote_value(old)} and has no '{key}'", f"set all of it: {above}={{…}}"
        )
    inner, replaced = _merge_at(old.get(key), loc, value, depth + 1)
    return {**old, key: inner}, replaced
