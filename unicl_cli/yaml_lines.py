"""Conversion between YAML text and plain data, with the line of each key; scalars are what they look like."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from unicl_cli.errors import UNSAFE, UniclError
from unicl_cli.problems import Loc

MAX_VALUES = 200_000
"""Maximum number of values in one document: a few lines of nested aliases can stand for billions."""


class MarkedYaml(NamedTuple):
    """Plain data, and for each path in it the place where it was written (`recipe.yaml:5`)."""

    data: Any
    marks: Mapping[Loc, str]


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.2 scalars: `3e-4` is a number; `no`, `1:30` and dates are text; `012` is twelve."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class-level table, emptied


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which `_Loader` would read as another type."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    if len(text) > 300:  # beyond the range of a float; Python refuses to print much longer numbers
        raise yaml.constructor.ConstructorError(None, None, "the number is too long", node.start_mark)
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    return sign * int(digits, base)


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    if "\0" in text:  # not allowed in the name of a file or folder
        raise yaml.constructor.ConstructorError(None, None, "NUL character", node.start_mark)
    return text


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())


# int before float: both patterns match `12`, and the one added first wins
for _kind, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*|[-+]?0o[0-7]+|[-+]?0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    # these break lines in YAML or steer a terminal, and only double quotes escape them
    style = '"' if re.search(f"[\n{UNSAFE}]", text) else None
    if re.fullmatch("(?i)y|n|yes|no|on|off", text):  # truth values for readers of YAML 1.1, such as PyYAML
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def _place(source: str, mark: Any) -> str:
    return f"{source}:{mark.line + 1}"


def _marks(node: yaml.Node, source: str, path: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """Yield each path below ``node`` with its place. Raises UniclError for a duplicate key or one that is not text."""
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield (*path, position), _place(source, item.start_mark)
            yield from _marks(item, source, (*path, position))
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, str] = {}
    for key, value in node.value:
        place = _place(source, key.start_mark)
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            name = f"key '{key.value}'" if isinstance(key, yaml.ScalarNode) else "a list or mapping as key"
            raise UniclError(f"{place}: {name} is not text", "put the key in quotes")
        if key.value in first:
            raise UniclError(
                f"{place}: duplicate key '{key.value}' (first set at {first[key.value]})", "remove one of the two"
            )
        first[key.value] = place
        yield (*path, key.value), place
        yield from _marks(value, source, (*path, key.value))


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the nodes below ``node`` with its aliases expanded; a node that contains itself adds nothing."""
    if id(node) not in known:
        known[id(node)] = 0
        pairs = isinstance(node, yaml.MappingNode)
        inner: Any = () if isinstance(node, yaml.ScalarNode) else node.value
        parts = (part for item in inner for part in (item if pairs else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def parse_yaml(text: str, source: str) -> MarkedYaml:
    """Parse one YAML document; ``source`` names it in marks and errors. Raises UniclError with the line at fault."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return MarkedYaml(None, {(): f"{source}:1"})
        if _size(node, {}) > MAX_VALUES:
            raise UniclError(
                f"{source}: more than {MAX_VALUES:,} values with all aliases expanded", "use fewer aliases"
            )
        marks = {(): f"{source}:1", **dict(_marks(node, source))}
        return MarkedYaml(loader.construct_document(node), marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise UniclError(f"{place}: {error.problem}", "fix the YAML at this place") from error
    except yaml.YAMLError as error:  # for characters that YAML forbids there is no mark
        raise UniclError(f"{source}: {' '.join(str(error).split())}", "fix the YAML at this place") from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # a tag that does not fit its value: !!int x, !!bool x
        raise UniclError(f"{source}: a value cannot be read: {error}", "fix the value, or remove its !!tag") from error
    except RecursionError as error:
        raise UniclError(
            f"{source}: an anchor contains itself, or the nesting is too deep", "write the values without anchors"
        ) from error


def read_value(text: str, source: str) -> Any:
    """Return the value that ``text`` would have after `key: ` in a file; empty text is null."""
    return parse_yaml(text, source).data


def _dump(data: Any, dumper: type[_Dumper], width: int, *, flow: bool | None = None) -> str:
    text = yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width)
    return re.sub(f"[{UNSAFE}]", lambda match: f"\\u{ord(match[0]):04x}", text)  # they stand inside double quotes


def write_yaml(data: Any) -> str:
    """Return YAML that `parse_yaml` reads back as equal data: keys in order, short lists on one line."""
    return _dump(data, _Dumper, 110)


def write_flow(data: Any) -> str:
    """Return YAML on one line that `parse_yaml` reads back as equal data."""
    text = _dump(data, _Dumper, 10**9, flow=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Block(_Dumper):
    """Dumper that writes one key per line, and lists of scalars on one line."""


def _represent_mapping(dumper: _Block, data: dict[str, Any]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)


_Block.add_representer(dict, _represent_mapping)


def write_commented_yaml(data: Any, note: Callable[[Loc], str]) -> str:
    """Return YAML with one key per line and, behind each value, ``note(place)`` as a comment."""
    text = _dump(data, _Block, 10**6)
    keys: dict[int, Loc] = {}
    for loc, place in parse_yaml(text, "").marks.items():
        number = int(place.rpartition(":")[2])
        if number not in keys or isinstance(loc[-1], str):
            keys[number] = loc
    lines = text.splitlines()
    width = min(40, max(map(len, lines)))
    noted = [
        line if line.endswith(":") else f"{line:<{width}}  # {note(keys[number])}"
        for number, line in enumerate(lines, 1)
    ]
    return "".join(f"{line}\n" for line in noted)


def leaves(value: Any, at: str = "") -> dict[str, Any]:
    """Return dotted path -> value of nested mappings and lists; an empty mapping or list is a value."""
    if not isinstance(value, dict | list | tuple) or not value:
        return {at: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, item in items for key, leaf in leaves(item, f"{at}.{name}".lstrip(".")).items()}
