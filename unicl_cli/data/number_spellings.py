"""Numbers among labels and ids, in the ways that files of people and programs spell them."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from unicl_cli.errors import UniclError

_INTEGER = re.compile(r"[+-]?\d{1,1000}")
_FLOAT = re.compile(r"[+-]?\d{1,1000}(\.\d{0,1000})?([eE][+-]\d{1,3})?|[+-]?\d{1,1000},0")
"""A number as pandas, NumPy and spreadsheets write it: 1, 1.0, 1e+00, 1,0."""
_NUMBER = re.compile(r"[+-]?\d{1,1000}(_\d{1,1000})*(\.\d{0,1000})?([eE][+-]?\d{1,4})?")
_GROUPED = re.compile(r"[+-]?\d{1,3}([ ,_'\u2009\u202f\xa0])\d{3}(?:\1\d{3})*(?!\d)")
_BASED = re.compile(r"[+-]?0(?:[xX][0-9a-fA-F]{1,500}|[oO][0-7]{1,500}|[bB][01]{1,1000})")


def is_integer(label: str) -> bool:
    """Return whether a label is written as an integer."""
    return _INTEGER.fullmatch(label) is not None


def number_of(label: str) -> Decimal | None:
    """Return the number that a label spells: 1, 01, 1.0, 1e0, 0x1, 1_000; None for any other text."""
    if _BASED.fullmatch(label):
        return Decimal(int(label, 0))
    plain = label
    if grouped := _GROUPED.match(label):
        plain = grouped[0].replace(grouped[1], "") + label[grouped.end() :]
    return Decimal(plain) if _NUMBER.fullmatch(plain) else None


def read_whole_numbers(labels: Iterable[str]) -> dict[str, str]:
    """Return label -> integer for those written as floats, if all labels are whole numbers; nothing if not.

    pandas writes 1.0 for 1 in a column where a value is missing.
    """
    met = set(labels)
    values = {label: Decimal(label.replace(",", ".")) for label in met if _FLOAT.fullmatch(label)}
    if len(values) < len(met) or any(value != value.to_integral_value() for value in values.values()):
        return {}
    return {label: str(int(value)) for label, value in values.items() if not is_integer(label)}


def describe_whole_numbers(whole: Mapping[str, str], counts: Mapping[str, int]) -> list[str]:
    """Return a note on the labels that `read_whole_numbers` found, by their counts; none if there are none."""
    if not whole:
        return []
    label, number = min(whole.items())
    rows = sum(counts[label] for label in whole)
    return [f"labels written as floats are taken as whole numbers ({rows:,}): {label} is {number}"]


def check_spelling(origin: str, labels: Iterable[str]) -> None:
    """Raise UniclError if several labels are spellings of one number, such as 1, 01, 1.0, 0x1 and 1e0."""
    spellings: dict[Decimal, list[str]] = {}
    for label in sorted(labels):
        if (number := number_of(label)) is not None:
            spellings.setdefault(number, []).append(label)
    if twice := next((of for of in spellings.values() if len(of) > 1), None):
        raise UniclError(
            f"{origin}: the labels {', '.join(twice[:5])} are one number, written in several ways",
            "write each number in one way, or name the classes with ?classes=FILE",
        )
