"""YAML text to plain data and back, with the line of each key and the scalars that a reader expects."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from unicl_cli.errors import UniclError
from unicl_cli.problems import Loc

MAX_VALUES = 200_000
"""Values in one document: a few lines of aliases of aliases make billions."""


class MarkedYaml(NamedTuple):
    """Plain data and, for each path in it, the place it was written at (`recipe.yaml:5`)."""

    data: Any
    marks: Mapping[Loc, str]


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `3e-4` is a number, `no` and `1:30` and dates are text, `012` is twelve."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class-level table, emptied


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read back as text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    if len(text) > 300:  # a float's range; Python refuses to write what is much longer
        raise yaml.constructor.ConstructorError(None, None, "the number is too long", node.start_mark)
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    return sign * int(digits, base)


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    if "\0" in text:  # no file, folder or name can have one
        raise yaml.constructor.ConstructorError(None, None, "a NUL character", node.start_mark)
    return text


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())


# int before float: both patterns match `12`, the first one added wins
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
    # these break lines in YAML, and only double quotes escape them
    style = '"' if {"\n", "\x85", "\u2028", "\u2029", "\ufeff"} & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def _place(source: str, mark: Any) -> str:
    return f"{source}:{mark.line + 1}"


def _marks(node: yaml.Node, source: str, path: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """Each path below ``node`` with its place; refuses repeated keys and keys that are not text."""
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
            raise UniclError(f"{place}: the key {getattr(key, 'value', '')!r} is not text", "put it in quotes")
        if key.value in first:
            raise UniclError(
                f"{place}: the key '{key.value}' is there twice, first at {first[key.value]}", "take one of them out"
            )
        first[key.value] = place
        yield (*path, key.value), place
        yield from _marks(value, source, (*path, key.value))


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes below ``node`` with all its aliases written out, each counted once; a circle counts nothing here."""
    if id(node) not in known:
        known[id(node)] = 0
        pairs = isinstance(node, yaml.MappingNode)
        inner: Any = () if isinstance(node, yaml.ScalarNode) else node.value
        parts = (part for item in inner for part in (item if pairs else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def parse_yaml(text: str, source: str) -> MarkedYaml:
    """One YAML document; ``source`` names it in marks and errors. Raises UniclError at the line of the fault."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return MarkedYaml(None, {(): f"{source}:1"})
        if _size(node, {}) > MAX_VALUES:
            raise UniclError(
                f"{source}: more than {MAX_VALUES:,} values, its aliases written out", "no recipe is so large"
            )
        marks = {(): f"{source}:1", **dict(_marks(node, source))}
        return MarkedYaml(loader.construct_document(node), marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise UniclError(f"{place}: {error.problem}", "fix the YAML at this place") from error
    except yaml.YAMLError as error:  # characters that YAML does not allow carry no mark
        raise UniclError(f"{source}: {' '.join(str(error).split())}", "fix the YAML at this place") from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # of a tag that does not fit its value: !!int x, !!bool x
        raise UniclError(f"{source}: a value cannot be read: {error}", "fix it, or take its !!tag away") from error
    except RecursionError as error:
        raise UniclError(f"{source}: an anchor contains itself, or the nesting is too deep", "write it flat") from error


def read_value(text: str, source: str) -> Any:
    """The value that ``text`` would have after `key: ` in a file; empty text is null."""
    return parse_yaml(text, source).data


def write_yaml(data: Any) -> str:
    """YAML that ``parse`` reads back as equal data, keys in their order, short lists on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


class _Block(_Dumper):
    """A key a line; lists of scalars stay on one."""


def _represent_mapping(dumper: _Block, data: dict[str, Any]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)


_Block.add_representer(dict, _represent_mapping)


def write_commented_yaml(data: Any, note: Callable[[Loc], str]) -> str:
    """`write` with a key a line and, behind each value, what ``note`` says of its place as a comment."""
    text = yaml.dump(data, Dumper=_Block, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6)
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
    """Dotted path -> value of nested mappings and lists; an empty one is a value."""
    if not isinstance(value, dict | list | tuple) or not value:
        return {at: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, item in items for key, leaf in leaves(item, f"{at}.{name}".lstrip(".")).items()}
