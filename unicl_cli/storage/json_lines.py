"""Reader of files with one JSON object per line, whatever a kill or a faulty disk has left of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from unicl_cli.errors import UniclError
from unicl_cli.storage.documents import Document, Number, StepCount
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json

MAX_BYTES = 4_000_000_000
"""The largest file: ten million lines of metrics have less."""


class Line(Document):
    """A line of a run's log."""

    step: StepCount


class MetricLine(Line):
    """A line of ``metrics.jsonl``: numbers alone; null stands for one that was not finite."""

    __pydantic_extra__: dict[str, Number | None] = Field(init=False)


class LoggedLine(NamedTuple):
    """A sound line: its text without the line break, its values, and whether a line break ended it."""

    text: str
    values: dict[str, Any]
    is_complete: bool


def read_lines(path: Path, model: type[Line]) -> Iterator[LoggedLine]:
    """Yield the sound lines of a file; a line that is cut, spoilt or not a ``model`` drops only itself.

    No file has no lines. UniclError if it cannot be read or is not a regular file.
    """
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UniclError(f"{path}: cannot be read: {error.strerror or error}", "move it out of the run") from error
    *whole, last = data.split(b"\n")
    del data
    for number, line in enumerate([*whole, last]):
        if not line.strip():
            continue
        try:
            values = model.model_validate(parse_json(line)).model_dump(exclude_unset=True)
        except (ValueError, ValidationError):
            continue
        yield LoggedLine(line.decode("utf-8-sig"), values, number < len(whole))
