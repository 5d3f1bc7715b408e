"""Checks of labels: an image takes one, so a column per class and several labels in a cell are refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.data.class_entry import NameList
from unicl_cli.data.sources.lists.cells import NOTHING, CellError, is_plain, odd_cell_error, parse_list, text_of
from unicl_cli.data.sources.lists.record import Line, ListOptions
from unicl_cli.errors import UniclError

MARKS = (
    "write the name of the image's class into a column 'label'; for several classes of one image, write their names "
    "into a column 'caption' and use --captions"
)
ONE_LABEL = "keep one label per image, or use the names as captions: --captions {src}"
MAX_LABEL = 1000
"""The most characters of a label."""
_SIGNS = frozenset(("-", "--", "---", "–", "—", "?", "??", "???", ".", "...", "…", "-1.0"))
_MARKS = frozenset(("0", "1", "-1", "0.0", "1.0", "-1.0", "true", "false"))
_SEPARATORS = ("\n", "|", ";", ",", "/", "+", "&", " ")


class SeveralLabelsError(CellError):
    """A cell with more than one label: the whole list is refused."""


def label_of(value: Any, name: str) -> str:
    """Return the label of a cell: a text, a number or a list of one. CellError for others."""
    if isinstance(value, str):
        found = parse_list(value)
        value = value if found is None else found
    values = value if isinstance(value, list) else [value]
    if any(not is_plain(item) for item in values):
        raise odd_cell_error(value, name, "label")
    if len(values) > 1 and all(text_of(item).lower() in _MARKS for item in values):
        raise SeveralLabelsError(
            f"{name} holds a mark for each of {len(values)} classes, and an image takes one label", MARKS
        )
    labels = list(dict.fromkeys(text.strip() for item in values if (text := text_of(item)).strip()))
    if len(labels) > 1:
        raise SeveralLabelsError(f"{name} holds several labels ({', '.join(labels[:3])}), and an image takes one")
    return labels[0] if labels else ""


def check_missing(path: Path, lines: Sequence[Line], names: NameList | None, options: ListOptions) -> None:
    """Raise UniclError for labels that may mean that there is none, unless a class of ``names`` is written so."""
    kept = {word.strip() for word in options.keep.split(",")}
    for entry in names.entries if names else ():
        kept |= {entry.id or "", entry.written, *entry.names}
    counts = Counter(line.label for line in lines if line.label)
    found = {word: n for word, n in counts.items() if is_missing(word) and word not in kept}
    if found:
        words = ",".join(sorted(found))
        shown = ", ".join(f"'{word}' {n:,}" for word, n in sorted(found.items()))
        raise UniclError(
            f"{path}: {sum(found.values()):,} of {counts.total():,} labels may mean that there is none ({shown})",
            f"name those that do: {options.src(path, missing=words)}; "
            f"name those that are classes: {options.src(path, keep=words)}",
        )


def is_missing(label: str) -> bool:
    """Return whether a label is a word or sign that is written where there is none."""
    return label.lower() in NOTHING or label in _SIGNS


def mark_columns(sample: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the columns whose cells are all 0, 1 or -1: one for each class, if there are several."""
    found = [
        column
        for column in columns
        if sample and all(text_of(cells.get(column)).strip().lower() in _MARKS for cells in sample)
    ]
    return found if len(found) > 1 else []


def mark_columns_error(path: Path, columns: Sequence[str]) -> UniclError:
    """Return the error for one column per class."""
    shown = ", ".join(columns[:5]) + (", …" if len(columns) > 5 else "")
    return UniclError(f"{path}: one column for each class ({shown}), and an image takes one label", MARKS)


def check_single_labels(path: Path, lines: Sequence[Line], as_captions: str) -> list[str]:
    """Return notes on labels that may name several classes. UniclError where they do.

    ``scab|rust``, ``scab;rust`` and two lines in a cell do if one of their parts is a label by itself; ``scab rust``
    and ``scab, rust`` if all are, or if ``_`` stands for the blanks inside a name. ``as_captions`` is for the hint.
    """
    counts = Counter(line.label for line in lines if line.label)
    joined = {label: separator for label in counts if (separator := _joining(label, counts))}
    if not joined:
        return []
    sure = {label for label, separator in joined.items() if _is_sure(label, separator, counts)}
    shown = sure or set(joined)
    first = next(line for line in lines if line.label in shown)
    rows = sum(counts[label] for label in shown)
    what = f"{rows:,} of {counts.total():,} labels seem to name several classes ({first.place}: {first.label})"
    if sure:
        raise UniclError(f"{path}: {what}, and an image takes one", ONE_LABEL.format(src=as_captions))
    return [f"{path.name}: {what}; each is taken as one class"]


def _joining(label: str, counts: Mapping[str, int]) -> str:
    """Return the separator of a label with a part that is a label by itself; empty if it has none."""
    for separator in _SEPARATORS:
        parts = _split(label, separator)
        if len(parts) > 1 and any(part in counts for part in parts):
            return separator
    return ""


def _is_sure(label: str, separator: str, counts: Mapping[str, int]) -> bool:
    parts = _split(label, separator)
    has_blanks_inside = separator in ", " and any("_" in part for part in parts)
    return separator in "\n|;" or all(part in counts for part in parts) or has_blanks_inside


def _split(label: str, separator: str) -> list[str]:
    """Return the parts of a label; every form of line break separates lines."""
    return [part.strip() for part in (label.splitlines() if separator == "\n" else label.split(separator))]
