"""Registry of parts by name: entry points and local files, found lazily, with options checked without torch."""

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unicl_cli.contracts import Part, Tuning
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.option_types import type_text
from unicl_cli.problems import Loc, PartError, RecipeProblem, problems_of, quote_value

if TYPE_CHECKING:  # pydantic costs 80 ms, which `unicl --help` does not pay
    from pydantic import TypeAdapter

API = 1
"""Version of the plugin interface. It grows only with breaking changes; the version before stays accepted."""

KINDS = {
    "encoders": "encoder",
    "datasets": "data set",
    "losses": "loss",
    "evaluators": "evaluator",
    "commands": "command",
}
"""Kind of part (entry-point group `unicl.KIND`) -> word for one such part in messages."""

CONTEXT = (
    *("encoder", "chunks", "num_classes", "classes", "embed_dim", "image_width", "image_size"),
    *("vocab_size", "context_length", "eot_id", "pad_id", "kind", "stored", "keep_answers"),
)
"""Parameters that the builder fills in: one of these names without a default is not an option of its factory."""
TUNING = tuple(field.name for field in dataclasses.fields(Tuning))
"""Options that every nested encoder has beside its own."""


class Entry(NamedTuple):
    """A part that can be loaded; ``dist`` is its distribution, or the path of a local file."""

    kind: str
    name: str
    dist: str | None
    version: str | None
    value: str
    load: Callable[[], Any]

    @property
    def builtin(self) -> bool:
        return self.value.startswith("unicl_cli.") and self.dist in (None, "unicl")

    @property
    def origin(self) -> str:
        return " ".join(filter(None, (self.dist, self.version))) or self.value


class ListedPart(NamedTuple):
    """One line of `unicl plugins ls`; ``state`` is ok, hidden, clash, broken or off, with the reason."""

    kind: str
    name: str
    dist: str | None
    version: str | None
    value: str
    state: str


# -- finding parts ------------------------------------------------------------------------------------------------


def _is_switched_off(name: str, dist: str | None) -> bool:
    """Return True if UNICL_NO_PLUGINS is 1 or names the part or its distribution."""
    off = os.environ.get("UNICL_NO_PLUGINS", "")
    return off == "1" or bool({name, dist} & set(off.split(",")))


def _installed_entries(kind: str, *, off: bool = False) -> list[Entry]:
    """Return the entry points of a kind that are in use, or with ``off`` those that UNICL_NO_PLUGINS switches off."""
    found: dict[tuple[str, str], Entry] = {}  # an editable install can show one entry point twice
    for point in importlib.metadata.entry_points(group=f"unicl.{kind}"):
        dist = point.dist
        name, version = (dist.name, dist.version) if dist else (None, None)
        entry = Entry(kind, point.name, name, version, point.value, point.load)
        if (not entry.builtin and _is_switched_off(entry.name, entry.dist)) == off:
            found.setdefault((entry.name, entry.value), entry)
    return list(found.values())


def _read_local(path: Path) -> list[Entry]:
    module_name = f"unicl_local_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickling and dataclasses look up the module by name
    spec.loader.exec_module(module)
    parts = module.PARTS
    if unknown := set(parts) - set(KINDS):
        raise ValueError(f"PARTS has {sorted(unknown)}, but the kinds are {', '.join(KINDS)}")
    return [
        Entry(kind, name, str(path), None, f"{path}:{name}", lambda part=part: part)
        for kind in parts
        for name, part in parts[kind].items()
    ]


@cache
def _local_entries() -> tuple[list[Entry], dict[Path, str]]:
    """Return the parts of the local plugin files, and for each file that cannot be loaded the reason."""
    entries: list[Entry] = []
    broken: dict[Path, str] = {}
    for path in local_files():
        try:
            entries += [entry for entry in _read_local(path) if not _is_switched_off(entry.name, entry.dist)]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - shown by `plugins ls` and by every failing look-up
            broken[path] = f"{type(error).__name__}: {error}"
    return entries, broken


def local_files() -> list[Path]:
    """Return the local plugin files of this process and its workers: the path list in UNICL_PLUGINS."""
    return [Path(item) for item in os.environ.get("UNICL_PLUGINS", "").split(os.pathsep) if item]


def add_local(file: str) -> None:
    """Add the parts of ``file``, in worker processes too (`--plugin`). Raises UniclError if it cannot be loaded."""
    path = str(Path(file).resolve())
    known = [str(item) for item in local_files()]
    if path not in known:
        os.environ["UNICL_PLUGINS"] = os.pathsep.join([*known, path])
    forget()
    if reason := _local_entries()[1].get(Path(path)):
        raise UniclError(f"plugin file {file}: cannot be loaded: {reason}", 'define PARTS = {"losses": {…}} in it')


def forget() -> None:
    """Drop what is cached, so that entry points and local files are read again after a change of the environment."""
    _local_entries.cache_clear()
    table.cache_clear()


@cache
def table(kind: str) -> tuple[Entry, ...]:
    """Return every part of a kind, clashes included, built-ins first. Imports local files only."""
    local = [entry for entry in _local_entries()[0] if entry.kind == kind]
    return tuple(sorted(_installed_entries(kind) + local, key=lambda entry: (not entry.builtin, entry.name)))


def names(kind: str) -> list[str]:
    """Return the names of a kind, sorted."""
    return sorted({entry.name for entry in table(kind)})


def find(kind: str, name: str) -> Entry:
    """Return the entry of this name (`name` or `dist/name`). Raises UniclError for an unknown name and for a clash."""
    entries = table(kind)
    matches = [entry for entry in entries if entry.name == name] or [
        entry for entry in entries if f"{entry.dist}/{entry.name}" == name
    ]
    if not matches:
        raise UniclError(f"no {KINDS[kind]} '{name}'{did_you_mean(name, names(kind))}", _hint_for_unknown(kind, name))
    if len(matches) > 1 and not matches[0].builtin:
        choices = " or ".join(f"{entry.dist}/{entry.name}" for entry in matches)
        raise UniclError(f"{KINDS[kind]} '{name}': in {len(matches)} plugins", f"write {choices}")
    return matches[0]


def _hint_for_unknown(kind: str, name: str) -> str:
    if not any(entry.builtin for entry in table(kind)):
        return "reinstall unicl (pip install -e . in a checkout): its own parts are not registered"
    broken = [f"; {path} cannot be loaded: {reason}" for path, reason in _local_entries()[1].items()]
    if name.rpartition("/")[2] in {entry.name for entry in _installed_entries(kind, off=True)}:
        broken.append(f"; UNICL_NO_PLUGINS={os.environ['UNICL_NO_PLUGINS']} switches '{name}' off")
    return f"use one of {', '.join(names(kind))}{''.join(broken)}"


def _load_part(entry: Entry) -> Any:
    where = f"plugin '{entry.name}' ({entry.origin})"
    try:
        part = entry.load()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UniclError(f"{where}: cannot be loaded: {reason}", "fix, update or uninstall it") from error
    version = getattr(part, "unicl_api", API)
    if version not in (API - 1, API):
        raise UniclError(f"{where}: for plugin interface {version}, but this unicl has {API}", "update one of them")
    if entry.kind != "commands" and not _is_factory(part):
        raise UniclError(f"{where}: not a function with keyword-only options", "see docs/plugins.md for an example")
    return part


def _is_factory(part: object) -> bool:
    if not inspect.isfunction(part):
        return False
    return all(parameter.kind is parameter.KEYWORD_ONLY for parameter in inspect.signature(part).parameters.values())


def get(kind: str, name: str) -> Callable[..., Any]:
    """Import and return a part. Raises UniclError for a part that is unknown, clashes, is broken or has another API."""
    return _load_part(find(kind, name))


def listing(kind: str) -> list[ListedPart]:
    """Return every part of a kind with its state. Imports each, so that a broken one shows before it is used."""
    rows = [ListedPart(*entry[:5], _state_of(entry)) for entry in table(kind)]
    rows += [ListedPart(*entry[:5], "off: UNICL_NO_PLUGINS") for entry in _installed_entries(kind, off=True)]
    broken = _local_entries()[1].items()
    return rows + [ListedPart(kind, path.stem, str(path), None, str(path), f"broken: {why}") for path, why in broken]


def _state_of(entry: Entry) -> str:
    try:
        _load_part(entry)
    except UniclError as error:
        return f"broken: {error.message}"
    alike = [other for other in table(entry.kind) if other.name == entry.name]
    if entry.builtin or len(alike) == 1:
        return "ok"
    return f"{'hidden by a built-in' if alike[0].builtin else 'clash'}: write {entry.dist}/{entry.name}"


# -- options of a part ------------------------------------------------------------------------------------------------

Nesting = Literal["one", "maybe", "many"]


class _OptionSchema(NamedTuple):
    defaults: dict[str, Any]
    nested: dict[str, Nesting]
    adapter: "TypeAdapter[dict[str, Any]]"


def _context_names(factory: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(factory).parameters.values()
    return [item.name for item in parameters if item.name in CONTEXT and item.default is item.empty]


def _nesting(hint: Any) -> Nesting | None:
    if hint is Part:
        return "one"
    if set(typing.get_args(hint)) == {Part, types.NoneType}:
        return "maybe"
    return "many" if typing.get_args(hint) == (str, Part) else None


def _option_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return option -> type of a factory, with the `Field` bounds of `Annotated`."""
    context = {*_context_names(factory), "return"}  # their types may be torch's, imported for checking only

    # `get_type_hints(factory)` evaluates all annotations, and fails on those of names imported for checking only.
    # It reads nothing but `__annotations__`: an empty function carries the annotations of the options alone.
    def options() -> None: ...

    options.__annotations__ = {name: hint for name, hint in factory.__annotations__.items() if name not in context}
    hints = typing.get_type_hints(options, globalns=factory.__globals__, include_extras=True)
    return {name: hints.get(name, Any) for name in inspect.signature(factory).parameters if name not in context}


@cache
def _option_schema(factory: Callable[..., Any], nested: bool) -> _OptionSchema:  # noqa: FBT001 - a cache key, private
    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict

    hints = _option_hints(factory)
    signature = inspect.signature(factory).parameters
    given = {name: signature[name].default for name in hints}
    defaults = {name: as_plain_data(value) for name, value in given.items() if value is not inspect.Parameter.empty}
    inner: dict[str, Nesting] = {name: form for name, hint in hints.items() if (form := _nesting(hint))}
    if nested:
        hints |= {
            name: hint for name, hint in typing.get_type_hints(Tuning, include_extras=True).items() if name in TUNING
        }
        defaults |= as_plain_data(Tuning())
    fields = {name: Any if name in inner else hint for name, hint in hints.items()}
    form: Any = TypedDict("form", fields)  # pyright: ignore[reportArgumentType] - known at run time only
    form.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return _OptionSchema(defaults, inner, TypeAdapter(form))


def as_plain_data(value: Any) -> Any:
    """Return a value in the types of YAML and JSON: parts and dataclasses become mappings, tuples become lists."""
    if isinstance(value, Part):
        return {"name": value.name, **as_plain_data(value.options), **as_plain_data(value.tuning)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_plain_data(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_plain_data(item) for item in value]
    return value


def bind(kind: str, part: "str | Mapping[str, Any] | Part", loc: Loc = (), siblings: Iterable[str] = ()) -> Part:
    """Return a part with every option checked against the signature of its factory, and with every default.

    ``part`` is a name, ``{"name": …, option: …}`` or a Part; ``loc`` is its place in the recipe. ``siblings`` are keys
    that are valid beside the options, for the did-you-mean. Raises PartError with all problems at once.
    """
    problems: list[RecipeProblem] = []
    if isinstance(part, Part):
        part = {"name": part.name, **as_plain_data(part.options)}
    bound = _bind(kind, part, loc, problems, tuple(siblings))
    if bound is None or problems:
        raise PartError(problems)
    return bound


def _bind(
    kind: str,
    given: Any,
    loc: Loc,
    problems: list[RecipeProblem],
    siblings: tuple[str, ...] = (),
    *,
    nested: bool = False,
) -> Part | None:
    raw: Any = {"name": given} if isinstance(given, str) else as_plain_data(given)
    if not isinstance(raw, dict) or not isinstance(name := raw.get("name"), str):
        text = f"should be the name of a part, or a mapping with a name, got {quote_value(given)}"
        problems.append(RecipeProblem(loc, text))
        return None
    try:
        factory = get(kind, name)
        options = _option_schema(factory, nested)
    except UniclError as error:
        choices = f"; {error.hint}" if error.hint and "did you mean" not in error.message else ""
        problems.append(RecipeProblem((*loc, "name"), f"{error.message}{choices}"))
        return None
    written = {key: value for key, value in raw.items() if key != "name"}
    values = _validate_options(options, {**options.defaults, **written}, loc, problems, siblings)
    for option, form in options.nested.items():
        if option in values:
            values[option] = _bind_inner(form, values[option], (*loc, option), problems)
    tuning = {key: values.pop(key) for key in TUNING if nested and key in values}
    return Part(name, values, Tuning(**tuning))


def _bind_inner(form: Nesting, given: Any, loc: Loc, problems: list[RecipeProblem]) -> Any:
    if form == "maybe" and given is None:
        return None
    if form == "many" and isinstance(given, dict):
        return {key: _bind("encoders", item, (*loc, key), problems, nested=True) for key, item in given.items()}
    return _bind("encoders", given, loc, problems, nested=True)


def _validate_options(
    options: _OptionSchema, raw: dict[str, Any], loc: Loc, problems: list[RecipeProblem], siblings: tuple[str, ...]
) -> dict[str, Any]:
    from pydantic import ValidationError

    """Return the validated options; after appending problems, only those that hold parts."""
    # Strict mode keeps "5" from being a number, but in Python data it also refuses a list for a tuple and a mapping
    # for a dataclass, all that YAML can write. For JSON it accepts these two: hence the detour through text.
    try:
        return dict(options.adapter.validate_json(json.dumps(raw)))
    except ValidationError as error:
        problems += problems_of(error, raw, options.adapter.json_schema(), loc, siblings)
        return {name: raw[name] for name in options.nested if name in raw}  # whose own problems are found next


def read_options(kind: str, name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return options given as text (`digits?classes=0-6&limit=600`), each read like a scalar of a recipe, for `bind`.

    An option of type str keeps its text as written (`07`).
    """
    hints = _option_hints(get(kind, name))
    return {key: _read_option(text, hints.get(key, str), f"{name}?{key}") for key, text in texts.items()}


def _read_option(text: str, hint: Any, place: str) -> Any:
    from unicl_cli.yaml_lines import read_value

    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if str not in members:
        return read_value(text, place)
    try:
        value = read_value(text, place)
    except UniclError:
        return text
    return value if type(value) in members else text


def make(kind: str, part: Part, context: Mapping[str, Callable[[], Any]]) -> Any:
    """Call the factory of a part with its options, and with the values of ``context`` that its signature names."""
    factory = get(kind, part.name)
    needed = _context_names(factory)
    if missing := [name for name in needed if name not in context]:
        known = f"give the parameter a default, or use only {', '.join(context)}"
        raise UniclError(f"{KINDS[kind]} '{part.name}': needs '{missing[0]}', which is not available here", known)
    return factory(**part.options, **{name: context[name]() for name in needed})


def arguments(kind: str, name: str) -> dict[str, tuple[str, Any]]:
    """Return option -> (type as text, default or `inspect.Parameter.empty`) of a factory."""
    factory = get(kind, name)
    parameters = inspect.signature(factory).parameters
    return {option: (type_text(hint), parameters[option].default) for option, hint in _option_hints(factory).items()}
