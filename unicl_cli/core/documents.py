"""Reader of the JSON files that unicl itself wrote: bounded, and checked against a model before anything uses them."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unicl_cli.core.files import read_regular
from unicl_cli.core.json_text import parse_json
from unicl_cli.errors import UniclError

MAX_BYTES = 256_000_000
"""The largest document: the manifest of a corpus of a million shards has less."""


class Document(BaseModel):
    """Base of the models: no conversion between types, no infinite numbers; keys of later versions are kept."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="allow")


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


def parse_document(data: bytes | str, model: type[D], path: Path, hint: str) -> D:
    """Return the JSON document ``data``, read from ``path``, as a ``model``; UniclError as `read_document`."""
    try:
        return model.model_validate(parse_json(data))
    except ValueError as error:  # pydantic's ValidationError is one
        raise UniclError(f"{path}: damaged: {explain_invalid(error)}", hint) from error


def explain_invalid(error: ValueError) -> str:
    """Return the first problem of an invalid document in one line: `shards.0.bytes: should be a valid integer`."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    fault = error.errors(include_url=False)[0]
    steps = (str(step) for step in fault["loc"])  # pydantic also names the members of a union
    where = ".".join(step for step in steps if not step.startswith(("constrained-", "list[", "literal[")))
    what = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{where}: {what}".removeprefix(": ")
