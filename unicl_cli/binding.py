"""Options of a part: checked against its factory's signature without torch, then given to the factory."""

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unicl_cli.contracts import Part, Tuning
from unicl_cli.errors import UniclError
from unicl_cli.option_types import type_text
from unicl_cli.problems import Loc, PartError, RecipeProblem, problems_of, quote_value
from unicl_cli.registry import KINDS, get

if TYPE_CHECKING:
    from pydantic import TypeAdapter

CONTEXT = (
    *("encoder", "chunks", "num_classes", "classes", "label_sets", "shows_captions", "hides_named", "embed_dim"),
    *("image_width", "token_width", "image_size", "vocab_size", "context_length", "start_id", "eot_id", "pad_id"),
    *("kind", "stored", "class_prompts", "class_counts", "moves_pixels"),
    *("keep_answers", "keep_ranks", "keep_precisions", "thresholds"),
)
"""Parameters that the builder fills in: one of these names without a default is not an option of its factory."""
TUNING = tuple(field.name for field in dataclasses.fields(Tuning))
"""Options that every nested encoder has in addition to its own."""

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

    ``part`` is a name, ``{"name": …, option: …}`` or a Part; ``loc`` is its place in the recipe. ``siblings`` are
    further valid keys, for the did-you-mean. Raises PartError with all problems at once.
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
    if form == "many" and isinstance(given, dict):  # null removes an entry of the recipe that this one extends
        kept = {key: item for key, item in given.items() if item is not None}
        return {key: _bind("encoders", item, (*loc, key), problems, nested=True) for key, item in kept.items()}
    return _bind("encoders", given, loc, problems, nested=True)


def _validate_options(
    options: _OptionSchema, raw: dict[str, Any], loc: Loc, problems: list[RecipeProblem], siblings: tuple[str, ...]
) -> dict[str, Any]:
    """Return the validated options; after appending problems, only those that hold parts."""
    from pydantic import ValidationError

    # Strict mode keeps "5" from being a number, but in Python data it also refuses a list for a tuple and a mapping
    # for a dataclass, all that YAML can write. For JSON it accepts these two: hence the detour through text.
    try:
        return dict(options.adapter.validate_json(json.dumps(raw)))
    except ValidationError as error:
        problems += problems_of(error, raw, options.adapter.json_schema(), loc, siblings)
        return {name: raw[name] for name in options.nested if name in raw}  # whose own problems are found next


def read_options(kind: str, name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return options given as text (`digits?classes=0-6&limit=600`), each read like a scalar of a recipe, for `bind`.

    An option that may be text keeps it as written (`07`, `exp #2`), unless it is the scalar of another of its types.
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
    return value if type(value) in members and not isinstance(value, str) else text


def make(kind: str, part: Part, context: Mapping[str, Callable[[], Any]]) -> Any:
    """Call the factory of a part with its options, and with the values of ``context`` that its signature names."""
    factory = get(kind, part.name)
    needed = _context_names(factory)
    if missing := [name for name in needed if name not in context]:
        known = f"give the parameter a default, or use only {', '.join(context)}"
        raise UniclError(f"{KINDS[kind]} '{part.name}': needs '{missing[0]}', which is not available here", known)
    return factory(**part.options, **{name: context[name]() for name in needed})


def takes(kind: str, name: str, parameter: str) -> bool:
    """Return whether the factory of a part asks the builder for ``parameter``."""
    return parameter in _context_names(get(kind, name))


def arguments(kind: str, name: str) -> dict[str, tuple[str, Any]]:
    """Return option -> (type as text, default or `inspect.Parameter.empty`) of a factory."""
    factory = get(kind, name)
    parameters = inspect.signature(factory).parameters
    return {option: (type_text(hint), parameters[option].default) for option, hint in _option_hints(factory).items()}
