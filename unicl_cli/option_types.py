"""Types of options as text for people: `int | None`, `'mean' | 'cls'`, `float ≥ 0`."""

import types
import typing
from typing import Any

SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}


def type_text(hint: Any) -> str:
    """Return a type hint without module names; the bounds of pydantic's `Field` follow the type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is types.NoneType:
        return "None"
    if origin is typing.Annotated:
        return " ".join(filter(None, (type_text(inner[0]), ", ".join(_bounds(inner[1:])))))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, inner))
    if origin is typing.Literal:
        return " | ".join(map(repr, inner))
    name = getattr(origin or hint, "__name__", str(hint))
    return f"{name}[{', '.join(map(type_text, inner))}]" if inner else name


def _bounds(marks: tuple[Any, ...]) -> list[str]:
    """``Field(ge=0, lt=1)`` -> ``["≥ 0", "< 1"]``."""
    found: list[str] = []
    for mark in marks:
        for each in getattr(mark, "metadata", [mark]):
            found += [f"{sign} {getattr(each, key)}" for key, sign in SIGNS.items() if hasattr(each, key)]
    return found
