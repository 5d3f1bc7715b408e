"""JSON of users' lists: NaN is a missing value, and duplicate keys are refused."""

from collections import Counter
from typing import Any

from unicl_cli.storage.json_text import parse_json


def parse_value(text: str | bytes) -> Any:
    """Return the value of a JSON text with None for NaN. ValueError if it is not JSON, nested too deep or ambiguous."""
    return parse_json(text, _make_object, _drop_constant)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key '{twice[:40]}'")
    return found


def _drop_constant(_: str) -> None:  # NaN and Infinity, as Python and pandas write missing numbers
    return None
