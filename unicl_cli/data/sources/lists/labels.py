"""Checks of labels: an image takes one unless an option says otherwise; what else may be several is refused."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from unicl_cli.data.class_entry import NameList
from unicl_cli.data.sources.lists.cells import NOTHING, CellError, is_plain, odd_cell_error, parse_list, text_of
from unicl_cli.data.sources.lists.column_names import usual_columns
from unicl_cli.data.sources.lists.record import Line, ListOptions
from unicl_cli.errors import UniclError

MARKS = "write the names of the image's classes into the cell instead of a mark for each class"
FEW = 8
"""The fewest images of which each has a label of its own that are doubtful."""
MAX_LABEL = 1000
"""Maximum number of characters of a label."""
OF_LABELS = ("label", "classes", "first", "missing", "keep", "sets", "onehot", "negative", "group")
"""The options of a list that concern labels alone."""
LISTS_ONLY = "true"
"""The value of ``sets`` for lists in cells and lines of one image; any other is the separator of labels in a cell."""
_SIGNS = frozenset(("-", "--", "---", "–", "—", "?", "??", "???", ".", "...", "…", "-1.0"))
_MARKS = frozenset(("0", "1", "-1", "0.0", "1.0", "-1.0", "true", "false"))
_SEPARATORS = ("\n", "|", ";", ",", "/", "+", "&", " ")
_LISTING = ("\n", "|", ";", ",")
NAMES_OF_SEPARATORS = {" ": "space", "\t": "tab"}
"""Separators of labels that an option spells as words."""


class WholeListError(CellError):
    """A cell for which the whole list is refused; the hint is empty if the cell holds several labels in a list."""


def label_set_hint(path: Path, options: ListOptions, sets: str, columns: Sequence[str]) -> str:
    """Return the hint for images with several labels: the options that take them all, or other ways to keep them."""
    all_of_them = options.src(path, sets=sets)
    return f"take them all: --labels {all_of_them}{keep_otherwise(path, options, columns)}"


def keep_otherwise(path: Path, options: ListOptions, columns: Sequence[str]) -> str:
    """Return the part of a hint for people who do not want label sets."""
    plain = ListOptions(**{name: value for name, value in vars(options).items() if name not in OF_LABELS})
    captions = plain.src(path, caption=",".join(columns))
    return f"; or keep one label per image; or use the names as captions: --captions {captions}"


def label_of(value: Any, name: str) -> str:
    """Return the label of a cell: a text, a number or a list of one. CellError for others."""
    if isinstance(value, str):
        found = parse_list(value)
        value = value if found is None else found
    values = value if isinstance(value, list) else [value]
    if any(not is_plain(item) for item in values):
        raise odd_cell_error(value, name, "label")
    if has_mark([text_of(item) for item in values]):
        raise WholeListError(f"{name} holds a mark for each of {len(values)} classes", MARKS)
    labels = list(dict.fromkeys(text.strip() for item in values if (text := text_of(item)).strip()))
    if len(labels) > 1:
        raise WholeListError(f"{name} holds several labels ({', '.join(labels[:3])}), and an image takes one")
    return labels[0] if labels else ""


def has_mark(texts: Sequence[str]) -> bool:
    """Return whether several values are all 0, 1 or -1."""
    return len(texts) > 1 and all(text.strip().lower() in _MARKS for text in texts)


def check_missing(path: Path, lines: Sequence[Line], names: NameList | None, options: ListOptions) -> None:
    """Raise UniclError for labels that may mean that there is none, unless a class of ``names`` is written so."""
    kept = {word.strip() for word in options.keep.split(",")}
    for entry in names.entries if names else ():
        kept |= {entry.id or "", entry.written, *entry.names}
    counts = Counter(label.text for line in lines for label in line.found.labels)
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
    """Return the columns whose filled cells are all 0, 1 or -1: one for each class, if there are several."""
    found: list[str] = []
    for column in columns:
        filled = [text for cells in sample if (text := text_of(cells.get(column)).strip().lower())]
        if filled and all(text in _MARKS for text in filled):
            found.append(column)
    return found if len(found) > 1 else []


def holds_marks(sample: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Return whether most of a column's filled cells are 0, 1 or -1; also true if it has no filled cell."""
    texts = [text for cells in sample if (text := text_of(cells.get(column)).strip().lower())]
    return 2 * sum(text in _MARKS for text in texts) >= len(texts)


def mark_columns_error(path: Path, options: ListOptions, columns: Sequence[str]) -> UniclError:
    """Return the error for one column per class, which no option has named as such."""
    shown = ", ".join(columns[:5]) + (", …" if len(columns) > 5 else "")
    onehot = replace(options, label=None).src(path, onehot=",".join(columns) if len(columns) <= 5 else "all")
    return UniclError(f"{path}: one column for each class ({shown})", f"take each column as a class: --labels {onehot}")


def check_single_labels(path: Path, lines: Sequence[Line], columns: Sequence[str], options: ListOptions) -> list[str]:
    """Return notes on labels that may name several classes, in columns whose cells are not split. UniclError if sure.

    ``scab|rust``, ``scab;rust`` and two lines in a cell do if one of their parts is a label by itself, or a part of
    another label, too; ``scab rust`` and ``scab, rust`` if all are labels, or if ``_`` stands for the blanks inside a
    name.
    """
    notes: list[str] = []
    for column in range(len(columns)):
        counts = Counter(label for line in lines for label in line.found.labels if label.column == column)
        texts = {label.text: count for label, count in counts.items()}
        shared = _find_shared_parts(texts)
        joined = {text: separator for text in texts if (separator := _joining(text, texts, shared))}
        if not joined:
            continue
        sure = {text for text, separator in joined.items() if _is_sure(text, separator, texts)}
        shown = sure or set(joined)
        place, text = next(
            (line.place, label.text)
            for line in lines
            for label in line.found.labels
            if label.column == column and label.text in shown
        )
        rows = sum(texts[label] for label in shown)
        what = f"{rows:,} of {counts.total():,} labels seem to name several classes ({place}: {text})"
        if sure:
            separator = NAMES_OF_SEPARATORS.get(joined[text], joined[text])
            raise UniclError(
                f"{path}: {what}, and an image takes one", label_set_hint(path, options, separator, columns)
            )
        notes.append(f"{path.name}: {what}; each is taken as one class")
    return notes


def check_repeats(path: Path, labels: Counter[str], column: str, options: ListOptions) -> list[str]:
    """Return a note if no two images share a label. UniclError if the column was taken as the only one left."""
    if len(labels) < FEW or labels.total() > len(labels):
        return []
    if options.label is not None or usual_columns("label", [column]):
        what = f"each of the {len(labels):,} labels is a class of its own"
        return [f"{path.name}: {what}: check that column '{column}' holds classes"]
    raise UniclError(
        f"{path}: column '{column}' has another label for each of {len(labels):,} images, so it may hold no classes",
        f"take the folder of each image: {options.src(path, label='folder')}, or name the column of the labels: "
        f"{options.src(path, label='COLUMN')}",
    )


def _find_shared_parts(labels: Iterable[str]) -> set[tuple[str, str]]:
    """Return the separators of lists with each text between them that several labels have."""
    counts = Counter(
        (separator, part)
        for label in labels
        for separator in _LISTING
        if len(parts := _split(label, separator)) > 1
        for part in set(parts)
    )
    return {part for part, labels in counts.items() if labels > 1}


def _joining(label: str, counts: Mapping[str, int], shared: Set[tuple[str, str]]) -> str:
    """Return the separator of a label with a part that is a label by itself, or shared; empty if it has none.

    Between commas, all parts must be shared: names such as "tench, Tinca tinca" have one.
    """
    for separator in _SEPARATORS:
        parts = _split(label, separator)
        enough = all if separator == "," else any
        is_shared = enough((separator, part) in shared for part in parts)
        if len(parts) > 1 and (is_shared or any(part in counts for part in parts)):
            return separator
    return ""


def _is_sure(label: str, separator: str, counts: Mapping[str, int]) -> bool:
    parts = _split(label, separator)
    has_blanks_inside = separator in ", " and any("_" in part for part in parts)
    return separator in "\n|;" or all(part in counts for part in parts) or has_blanks_inside


def _split(label: str, separator: str) -> list[str]:
    """Return the parts of a label; every form of line break separates lines."""
    return [part.strip() for part in (label.splitlines() if separator == "\n" else label.split(separator))]
