"""The layers of a recipe: files by path or name, what they extend, overrides, merged into one with its places."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.problems import Loc, quote_value
from unicl_cli.yaml_lines import MarkedYaml, parse_yaml, read_value

LENGTHS = ("steps", "epochs", "samples")
"""How long a run is: a recipe has exactly one, and a later layer's replaces an earlier one's."""
DEFAULT_PARTS = {"model": "two_tower", "loss": "unicl", "augment": "basic"}
"""What these sections are when they name nothing."""


def builtin_folder() -> Path:
    """Where the shipped recipes lie: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def builtin_names() -> list[str]:
    """The shipped recipes, sorted."""
    return sorted(path.stem for path in builtin_folder().glob("*.yaml"))


def find_recipe(source: str, beside: Path = Path()) -> Path:
    """The file of a recipe: a path, relative to ``beside``, or the name of a shipped one."""
    if (beside / source).is_file():
        return beside / source
    if source in builtin_names():
        return builtin_folder() / f"{source}.yaml"
    hint = "give a file, or the name of a shipped one: unicl recipes ls"
    folder = beside / source
    if (folder / "resolved.yaml").is_file():
        raise UniclError(f"{source} is a run, no recipe", f"its recipe is {source}/resolved.yaml")
    if folder.is_dir():
        what = "a corpus" if (folder / "manifest.json").is_file() else "a folder"
        raise UniclError(f"{source} is {what}, no recipe", hint)
    raise UniclError(f"no recipe '{source}'{did_you_mean(source, builtin_names())}", hint)


def read_recipe_file(path: Path) -> str:
    """The text of a recipe file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UniclError(f"{path} cannot be read: {error}", "give a recipe: a text file in YAML") from error


def require_mapping(lined: MarkedYaml, source: str) -> MarkedYaml:
    """The same, if it is a mapping."""
    if not isinstance(lined.data, dict):
        raise UniclError(f"{source}: a recipe is a mapping of keys", "see `unicl recipes show quickstart`")
    return lined


def read_layers(path: Path, children: tuple[Path, ...] = ()) -> MarkedYaml:
    """The recipe of a file on top of what it extends, at any depth."""
    child = require_mapping(parse_yaml(read_recipe_file(path), str(path)), str(path))
    data = {key: value for key, value in child.data.items() if key != "extends"}
    parent = child.data.get("extends")
    if parent is None:
        return MarkedYaml(data, child.marks)
    place = child.marks["extends",]
    if not isinstance(parent, str):
        raise UniclError(
            f"{place}: extends: should be a file or the name of a recipe, got {quote_value(parent)}",
            "unicl recipes ls lists the names",
        )
    try:
        found = find_recipe(parent, path.parent)
    except UniclError as error:
        raise UniclError(f"{place}: extends: {error.message}", error.hint) from error
    if found.resolve() in (known := (*children, path.resolve())):
        raise UniclError(f"{place}: extends: '{parent}' extends itself in a circle", "take one extends out of it")
    return _merge_marked(read_layers(found, known), MarkedYaml(data, child.marks))


def _merge_marked(base: MarkedYaml, child: MarkedYaml) -> MarkedYaml:
    replaced: list[Loc] = []
    data = merge(base.data, child.data, (), replaced)
    return MarkedYaml(data, {**_drop_replaced(base.marks, replaced), **child.marks})


def _drop_replaced(marks: Mapping[Loc, str], replaced: Sequence[Loc]) -> dict[Loc, str]:
    """The marks that still count: those below a replaced value point at lines that no longer do."""
    return {loc: place for loc, place in marks.items() if not any(loc[: len(gone)] == gone for gone in replaced)}


def _is_part(loc: Loc) -> bool:
    inner = loc[2:] if loc[:1] == ("stages",) else loc
    return inner[:1] == ("model",) or inner == ("loss",) or inner[-1:] == ("augment",)


def as_part_mapping(value: Any) -> Any:
    """A part that is written as its bare name, as a mapping."""
    return {"name": value} if isinstance(value, str) else value


def merge(old: Any, new: Any, loc: Loc, replaced: list[Loc]) -> Any:
    """``new`` on top of ``old``: mappings key by key; scalars, lists and parts of another name replace.

    Appends to ``replaced`` each place below which nothing of ``old`` is left.
    """
    if _is_part(loc) and isinstance(old, str | dict) and isinstance(new, str | dict) and type(old) is not type(new):
        old, new = as_part_mapping(old), as_part_mapping(new)
    if not isinstance(old, dict) or not isinstance(new, dict) or (_is_part(loc) and _changes_part(old, new, loc)):
        replaced.append(loc)
        return new
    kept = _without_length(old) if not loc and length_keys(new) else old
    added = {k: merge(kept[k], v, (*loc, k), replaced) if k in kept else v for k, v in new.items()}
    return {**kept, **added}


def _changes_part(old: Mapping[str, Any], new: Mapping[str, Any], loc: Loc) -> bool:
    return "name" in new and new["name"] != old.get("name", DEFAULT_PARTS.get(str(loc[-1]), new["name"]))


def length_keys(data: Mapping[str, Any]) -> list[str]:
    """Which keys say how long the run is."""
    return [key for key in LENGTHS if data.get(key) is not None]


def _without_length(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in LENGTHS}


def apply_overrides(lined: MarkedYaml, overrides: Sequence[str]) -> MarkedYaml:
    """With each ``KEY=VALUE`` on top, in their order."""
    for text in overrides:
        key, equals, written = text.partition("=")
        if not key or not equals:
            raise UniclError(f"override '{text}' is not KEY=VALUE", "for example optim.lr=1e-3")
        loc = _parse_key(lined.data, key, text)
        place = f"command line ({text})"
        value, replaced = read_value(written, place), list[Loc]()
        data = _merge_at(lined.data, loc, 0, value, replaced)
        if loc[0] in LENGTHS and value is not None:
            data = {**_without_length(data), loc[0]: value}
        above = dict.fromkeys([loc[:depth] for depth in range(1, len(loc))], place)  # where the file has nothing
        here = dict.fromkeys(_locs_below(value, loc), place)
        lined = MarkedYaml(data, {**above, **_drop_replaced(lined.marks, replaced), **here})
    return lined


def _locs_below(value: Any, loc: Loc) -> list[Loc]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [loc, *(found for key, item in items for found in _locs_below(item, (*loc, key)))]


def _parse_key(data: Any, key: str, text: str) -> Loc:
    loc: list[str | int] = []
    for name in key.split("."):
        if isinstance(data, list):
            if not name.isdecimal() or int(name) >= len(data):
                raise UniclError(f"override '{text}': no '{name}' in a list of {len(data)}", "entries count from 0")
            loc.append(int(name))
            data = data[int(name)]
        else:
            loc.append(name)
            data = data[name] if isinstance(data, dict) and name in data else None
    return tuple(loc)


def _merge_at(old: Any, loc: Loc, depth: int, value: Any, replaced: list[Loc]) -> Any:
    """``old`` with ``value`` merged in at ``loc``; mappings on the way are made where there are none."""
    if depth == len(loc):
        return merge(old, value, loc, replaced)
    at, key = loc[:depth], loc[depth]
    old = {} if old is None else as_part_mapping(old) if _is_part(at) else old
    if isinstance(old, list):
        return [_merge_at(item, loc, depth + 1, value, replaced) if i == key else item for i, item in enumerate(old)]
    if not isinstance(old, dict):
        above = ".".join(map(str, at))
        raise UniclError(
            f"command line: {above} is {quote_value(old)} and has no '{key}'", f"give all of it: {above}={{…}}"
        )
    return {**old, key: _merge_at(old.get(key), loc, depth + 1, value, replaced)}
