"""Reader of the JSON files that unicl itself wrote: bounded, and checked against a model before anything uses them."""

import gc
import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from unicl_cli.errors import UniclError
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json

MAX_BYTES = 256_000_000
"""The largest document: the manifest of a corpus of a million shards has less."""

Natural = Annotated[int, Field(ge=0, lt=2**63)]
StepCount = Annotated[int, Field(ge=0, le=10**10)]
"""Number of completed steps: times a batch's size it still fits 64 bits."""
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float


def check_progress(step: int, steps: int | None) -> None:
    """Raise ValueError if more steps are completed than there are."""
    if steps is not None and step > steps:
        raise ValueError(f"step: is {step:,} of {steps:,} steps")


def _check_numbers(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("should be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("should be a number of at most 64 bits")
    if isinstance(value, dict | list):
        children: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for child in children:
            _check_numbers(child)
    return value


Plain = Annotated[Any, AfterValidator(_check_numbers)]
"""Any value of JSON whose numbers are finite and, if whole, fit 64 bits."""


class Document(BaseModel):
    """Base of the models: no conversion between types, no infinite numbers; keys of later versions are kept."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="allow")

    __pydantic_extra__: dict[str, Plain] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]


D = TypeVar("D", bound=Document)


def read_document(path: Path, model: type[D], hint: str, most: int = MAX_BYTES) -> D:
    """Return the JSON document in a file as a ``model``.

    FileNotFoundError if there is none. UniclError `PATH: damaged: REASON` with ``hint`` if it cannot be read, is not a
    regular file, is not JSON, or if the model refuses it.
    """
    try:
        return parse_document(read_regular(path, most), model, path, hint)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UniclError(f"{path}: cannot be read: {error.strerror or error}", hint) from error


def load_facts(path: Path, model: type[D], hint: str, most: int = MAX_BYTES) -> dict[str, Any]:
    """Return a document as a mapping with the keys that its file has; errors as `read_document`."""
    return read_document(path, model, hint, most).model_dump(mode="json", exclude_unset=True)


def parse_document(data: bytes | str, model: type[D], path: Path, hint: str) -> D:
    """Return the JSON document ``data``, read from ``path``, as a ``model``; UniclError as `read_document`."""
    with pause_gc():
        try:
            value = parse_json(data)
        except ValueError as error:
            raise UniclError(f"{path}: damaged: {explain_invalid(error)}", hint) from error
        return check_document(value, model, path, hint)


def check_document(value: object, model: type[D], path: Path, hint: str) -> D:
    """Return the parsed JSON ``value``, read from ``path``, as a ``model``; UniclError as `read_document`."""
    try:
        return model.model_validate(value)
    except ValueError as error:  # pydantic's ValidationError is one
        raise UniclError(f"{path}: damaged: {explain_invalid(error)}", hint) from error


@contextmanager
def pause_gc() -> Generator[None]:
    """Collect no garbage while a document is built: it has no cycles, and a large one takes half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def explain_invalid(error: ValueError) -> str:
    """Return the first problem of an invalid document in one line: `shards.0.bytes: should be a valid integer`."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    fault = error.errors(include_url=False)[0]
    steps = (str(step) for step in fault["loc"])  # pydantic also names the members of a union
    where = ".".join(step for step in steps if not step.startswith(("constrained-", "list[", "literal[")))
    what = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{where}: {what}".removeprefix(": ")
