"""JSON documents for people and programs: one strict text, readable on a terminal and equal when it is read back."""

import json
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unicl_cli.errors import UNSAFE, UniclError
from unicl_cli.storage.files import write_output_data


def format_json(value: Any, indent: int | None = None, *, ascii_only: bool = False) -> str:
    """Return the JSON of a value. Letters stay; what could steer a terminal is escaped. ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, indent=indent)
    return re.sub(f"[{UNSAFE}]", lambda match: f"\\u{ord(match[0]):04x}", text)


def print_json(value: Any, indent: int | None = None) -> None:
    """Write a document to standard output, in ASCII where its encoding is not UTF-8."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(f"{format_json(value, indent, ascii_only=not is_utf8)}\n")


def write_document(out: Path, document: Mapping[str, Any]) -> None:
    """Write a document to the file of ``-o``: the whole one, or none."""
    with report_write_error("-o", out):
        write_output_data(out, format_json(document, 2) + "\n")


@contextmanager
def report_write_error(option: str, file: Path) -> Generator[None]:
    """Turn an OSError inside the block into a UniclError that names the option and its file."""
    try:
        yield
    except OSError as error:
        raise UniclError(f"{option} {file}: cannot be written: {error.strerror}", "use another file") from error
