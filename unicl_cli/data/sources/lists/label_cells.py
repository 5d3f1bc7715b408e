"""Cells of labels: one label, several in a list or between separators, or a mark of a class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.sources.lists.cells import CellError, is_plain, look_up_cell, odd_cell_error, parse_list, text_of
from unicl_cli.data.sources.lists.columns import FOLDER, Roles
from unicl_cli.data.sources.lists.labels import (
    LISTS_ONLY,
    MARKS,
    MAX_LABEL,
    WholeListError,
    has_mark,
    label_of,
)
from unicl_cli.data.sources.lists.record import Label, LabelSet, ListOptions
from unicl_cli.data.sources.lists.separator import NAMES
from unicl_cli.data.sources.text_file import describe_length
from unicl_cli.errors import UniclError

_MINUS = frozenset(("-1", "-1.0"))
_MARKS = {"yes": frozenset(("1", "1.0", "true")), "zero": frozenset(("0", "0.0", "false")), "minus": _MINUS}


class SetCells:
    """Cells with several labels, in lists or between separators, and counts of what was unusual in them."""

    def __init__(self, separator: str, missing: frozenset[str] = frozenset()) -> None:
        self.separator, self.missing = separator, missing
        self.counts: Counter[str] = Counter()

    def read(self, value: Any, name: str) -> tuple[str, ...] | None:
        """Return the labels of a cell; None if it says nothing, and () if it says that there are none.

        CellError for a cell that holds something else, WholeListError for a mark for each class.
        """
        values, is_list = self._split(value)
        if any(not is_plain(item) for item in values):
            raise odd_cell_error(value, name, "label")
        texts = [text_of(item).strip() for item in values]
        if _is_one_hot(texts):
            raise WholeListError(f"{name} holds a mark for each of {len(texts)} classes", MARKS)
        filled = [text for text in texts if text]
        kept = [text for text in filled if text not in self.missing and text != str(NO_LABEL)]
        labels = tuple(dict.fromkeys(kept))
        for label in labels:
            _check_length(label, name)
        if len(texts) > 1:
            self.counts["empty"] += len(texts) - len(filled)
        self.counts["repeated"] += len(kept) - len(labels)
        return labels if labels or (is_list and not texts) else None

    def _split(self, value: Any) -> tuple[Sequence[Any], bool]:
        """Return the parts of a cell, and whether it is a list."""
        if isinstance(value, str):
            found = parse_list(value)
            if found is None:
                parts = value.split(self.separator) if self.separator else [value]
                self.counts["split"] += len(parts) > 1
                return parts, False
            value = found
        if isinstance(value, list | tuple):
            return [item for item in value if item is not None], True
        return [value], False

    def notes(self, origin: str) -> list[str]:
        """Return notes for `prepare` on cells that were not taken literally."""
        counts = self.counts
        notes: list[str] = []
        if self.separator and not counts["split"]:
            notes.append(f"{origin}: no cell of labels has the separator '{self.separator}' of sets=")
        if counts["repeated"]:
            notes.append(f"{origin}: labels repeated in a cell, kept once: {counts['repeated']:,}")
        if counts["empty"]:
            notes.append(f"{origin}: empty labels between separators, dropped: {counts['empty']:,}")
        return notes


class LabelReader:
    """The labels of each record of a list, and counts of what was unusual in its cells."""

    def __init__(self, path: Path, roles: Roles, options: ListOptions) -> None:
        self.path, self.columns, self.options = path, roles.columns.label, options
        self.is_onehot = roles.is_onehot
        self.negative = _read_negative(path, options)
        self.missing = frozenset(word.strip() for word in options.missing.split(",")) - {""}
        self.sets = SetCells(read_separator(str(path), options.sets), self.missing)
        self.counts: Counter[str] = Counter()
        self.marks: dict[object, str] = {}
        self.met: dict[LabelSet, LabelSet] = {}

    def read(self, cells: Mapping[str, Any], ref: str) -> LabelSet:
        """Return the labels of a record. CellError for a cell that cannot be read, WholeListError for a wrong list."""
        labels: list[Label] = []
        unknown: list[int] = []
        for number, name in enumerate(self.columns):
            texts = self._read_mark(cells, name) if self.is_onehot else self._texts(cells, name, ref)
            if texts is None:
                unknown.append(number)
            elif texts:
                labels += [Label(number, text) for text in texts]
        found = LabelSet(tuple(labels), tuple(unknown))
        return self.met.setdefault(found, found)  # one for all lines with the same labels

    def _texts(self, cells: Mapping[str, Any], name: str, ref: str) -> Sequence[str] | None:
        """Return the labels of a cell; None if it says nothing, and () if it says that there are none."""
        if name == FOLDER and name not in cells:
            value: Any = PurePosixPath(ref.replace("\\", "/")).parent.name
        else:
            value = look_up_cell(cells, name)
        if self.options.sets is None:
            label = label_of(value, name)
            _check_length(label, name)
            is_none = not label or label in self.missing or (label == str(NO_LABEL) and len(self.columns) > 1)
            return None if is_none else (label,)
        return self.sets.read(value, name)

    def _read_mark(self, cells: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
        value = cells[name] if name in cells else look_up_cell(cells, name)
        is_short = isinstance(value, str | int | NoneType)  # a list has few marks, and many cells
        kind = self.marks.get(value) if is_short else None
        if kind is None:
            kind = self._kind_of_mark(value, name)
        if is_short:
            self.marks[value] = kind
        self.counts[kind] += 1
        if kind == "yes":
            return (name,)
        return () if kind == self.negative else None

    def _kind_of_mark(self, value: Any, name: str) -> str:
        """Return what a mark says: yes, zero, minus or nothing. WholeListError for any other cell."""
        text = text_of(value).strip() if is_plain(value) else "…"
        if not text or text in self.missing:
            return "nothing"
        for kind, words in _MARKS.items():
            if text.lower() in words:
                return kind
        raise WholeListError(
            f"{name} holds '{text[:40]}', which is neither 0 nor 1",
            "write 0, 1 or nothing (-1: unknown), name words for unknown by missing=, or choose the columns: "
            "?onehot=COLUMN,COLUMN or ?onehot=PREFIX*",
        )

    def check(self) -> None:
        """Raise UniclError for marks that may mean two things."""
        if self.is_onehot and self.counts["minus"] and not self.counts["zero"] and self.options.negative is None:
            src = self.options.src(self.path, negative="-1")
            raise UniclError(
                f"{self.path}: its columns of classes have 1 and -1, but no 0: -1 may mean no, or unknown",
                f"if it means no: {src}; if it means unknown, add negative=0",
            )

    def notes(self) -> list[str]:
        """Return notes for `prepare` on cells that were not taken literally."""
        notes = self.sets.notes(self.path.name)
        mark, other = ("0", "zero") if self.negative == "minus" else ("-1", "minus")
        if unknown := self.counts["nothing"] + self.counts[other]:
            notes.append(f"{self.path.name}: marks that are empty or {mark}, which means unknown: {unknown:,}")
        return notes


def read_separator(origin: str, sets: str | None) -> str:
    """Return the separator of labels in a cell that ``sets`` names; empty if only lists hold several."""
    if sets is None or sets.lower() == LISTS_ONLY:
        return ""
    separator = NAMES.get(sets.lower(), sets)
    if not separator or any(mark.isalnum() for mark in separator):
        raise UniclError(
            f"{origin}: sets={sets}: not a separator of labels",
            f"give it as it stands in the cells (sets=;), by a word ({', '.join(NAMES)}), or sets=true for lists",
        )
    return separator


def _read_negative(path: Path, options: ListOptions) -> str:
    """Return the kind of mark that means no."""
    if options.negative not in (None, "0", "-1"):
        raise UniclError(f"{path}: negative={options.negative}: not a mark for no", "use negative=0 or negative=-1")
    return "minus" if options.negative == "-1" else "zero"


def _is_one_hot(texts: Sequence[str]) -> bool:
    """Return whether values are a mark for each class: 0, 1 or -1, with one twice, or -1 before another.

    Numbers of classes differ from each other; -1 at the end fills a row up.
    """
    last = next((at for at, text in reversed(list(enumerate(texts))) if text not in _MINUS), -1)
    marks = texts[: last + 1]
    return has_mark(marks) and (len(set(marks)) < len(marks) or any(text in _MINUS for text in marks))


def _check_length(label: str, name: str) -> None:
    if len(label) > MAX_LABEL:
        raise CellError(describe_length(name, len(label), MAX_LABEL))
