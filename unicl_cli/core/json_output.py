"""JSON documents for people and programs: one strict text, readable on a terminal and equal when it is read back."""

import json
import re
import sys
from typing import Any

from unicl_cli.errors import UNSAFE


def format_json(value: Any, indent: int | None = None, *, ascii_only: bool = False) -> str:
    """Return the JSON of a value. Letters stay; what could steer a terminal is escaped. ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, indent=indent)
    return re.sub(f"[{UNSAFE}]", lambda match: f"\\u{ord(match[0]):04x}", text)


def print_json(value: Any, indent: int | None = None) -> None:
    """Write a document to standard output, in ASCII where its encoding is not UTF-8."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(f"{format_json(value, indent, ascii_only=not is_utf8)}\n")
