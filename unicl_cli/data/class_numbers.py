"""Classes for the labels in data: names from a list matched by id or position, and names that prompts can say."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from unicl_cli.contracts import NO_LABEL, ClassName
from unicl_cli.data.class_entry import ClassEntry, NameList
from unicl_cli.data.class_names import read_class_file
from unicl_cli.data.number_spellings import is_integer
from unicl_cli.data.wordnet import names_of_synset
from unicl_cli.errors import Remark, UniclError

_SYNSET = re.compile(r"(n\d{8})(?:[-_ .]+(.+))?")
_COUNTED = re.compile(r"(\d{1,18})[._ -]+(.*[^\W\d_].*)")

_NAME = re.compile(r"(?!https?://|[\[{])(?=.*[^\W\d_]).{1,200}")
"""A text with a letter, which is not an address, a list or an object."""

_DOUBTFUL = (
    (re.compile(r"[+-]?\d+([.,]\d+)?"), "are numbers"),
    (re.compile(r"n\d{8}"), "are WordNet ids"),
    (re.compile(r"(?!n\d{8})(\d+[._ -].*|n\d{8}[._ -].*)"), "begin with a number or an id"),
    (
        re.compile(r"(?i)true|false|yes|no|none|null|nil|nan|<na>|#?n/?a|unknown|missing|unlabel+ed|[-–—?.]+"),
        "say nothing about an image",
    ),
    (re.compile(r"[/\\].*"), "look like paths"),
    (re.compile(r"[\[{(<].*|.*[\]}>]|['\"].*|.*[|;:]"), "look like syntax"),
)
"""Class names that hardly say what an image shows."""


class LabelledClasses(NamedTuple):
    """The classes of a source, and label as written in the data -> class number."""

    classes: tuple[ClassName, ...]
    numbers: Mapping[str, int]


class RowLabels(NamedTuple):
    """The labels of a row as a source gives them; see `contracts.Row`."""

    label: int = NO_LABEL
    labels: tuple[int, ...] = ()
    known: tuple[str, ...] | None = None


def set_row_labels(numbers: Iterable[int], known: Sequence[str], groups: Sequence[str]) -> RowLabels:
    """Return the labels of a row with a set of classes, annotated for ``known`` of the ``groups`` of its source."""
    labels = tuple(sorted(set(numbers)))
    label = labels[0] if len(labels) == 1 else NO_LABEL
    if labels and len(known) == len(groups):
        return RowLabels(label, labels if label == NO_LABEL else ())
    return RowLabels(label, labels, tuple(known) or None)


def read_names(classes: str | None, first: int | None) -> NameList | None:
    """Return the names of the file given by ``classes``; None without. UniclError if only ``first`` is given."""
    if classes is None and first is not None:
        raise UniclError(f"first={first}: no class names to count", "add classes=FILE")
    return read_class_file(classes) if classes else None


def match_labels(names: NameList, labels: Collection[str], first: int | None) -> LabelledClasses:
    """Return the classes of ``names``, and the number of every label that one of them stands for.

    Labels are ids of the list, names as written, or positions that count from ``first``. UniclError if they are
    positions and 0 does not occur, since the count may begin at 1.
    """
    entries = list(names.entries)
    if names.has_ids and all(entry.id and entry.id.isdecimal() for entry in entries):
        entries.sort(key=lambda entry: int(entry.id or 0))
    _check_names(entries, names.origin)
    by_name = _numbers_by_name(entries)
    integers = {label for label in labels if is_integer(label) and int(label) != NO_LABEL}
    by_position = not names.has_ids and integers == _without_no_label(labels) and not integers <= by_name.keys()
    if first is not None and not by_position:
        raise UniclError(f"{names.origin}: first={first}: the labels are not positions", "remove first")
    numbers = dict(by_name)
    if names.has_ids:
        numbers |= {entry.id: number for number, entry in enumerate(entries) if entry.id is not None}
        numbers |= {label: numbers[str(int(label))] for label in integers if str(int(label)) in numbers}
    elif by_position and integers:
        numbers = _count_positions(integers, entries, names.origin, first)
    return LabelledClasses(name_classes([entry.names for entry in entries]), numbers)


def _without_no_label(labels: Collection[str]) -> set[str]:
    return {label for label in labels if not (is_integer(label) and int(label) == NO_LABEL)}


def _check_names(entries: Sequence[ClassEntry], origin: str) -> None:
    counts = Counter(entry.names[0] for entry in entries)
    if repeated := next((entry for entry in entries if counts[entry.names[0]] > 1), None):
        ids = ", ".join(str(entry.id) for entry in entries if entry.names[0] == repeated.names[0])
        raise UniclError(
            f"{origin}: {repeated.names[0]} is the name of several classes ({ids})", "give each class its own name"
        )


def _numbers_by_name(entries: Sequence[ClassEntry]) -> dict[str, int]:
    numbers = {entry.written: number for number, entry in enumerate(entries)}
    return numbers | {entry.names[0]: number for number, entry in enumerate(entries)}


def _count_positions(
    integers: set[str], entries: Sequence[ClassEntry], origin: str, first: int | None
) -> dict[str, int]:
    """Return label -> position in the list. UniclError if 0 is not among the labels and ``first`` is not given."""
    values = {label: int(label) for label in integers}
    low, high = min(values.values()), max(values.values())
    if first is None and low > 0:
        raise UniclError(
            f"{origin}: has {len(entries):,} names, and the labels run from {low} to {high}, without 0: "
            f"the first name may belong to 0 or to 1",
            f"add first=1 if label 1 is '{entries[0].names[0]}', or first=0 if label 0 is",
        )
    numbers = {label: value - (first or 0) for label, value in values.items()}
    return {label: number for label, number in numbers.items() if 0 <= number < len(entries)}


def pair_names(pairs: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """Return label -> name if every label has one name of its own; None if not, or if no label comes twice."""
    names: dict[str, str] = {}
    times: Counter[str] = Counter()
    for label, name in pairs:
        if label in ("", str(NO_LABEL)):
            continue
        if not _NAME.fullmatch(name) or names.setdefault(label, name) != name:
            return None
        times[label] += 1
    if len(names) < 2 or len(set(names.values())) < len(names) or times.total() == len(names):
        return None
    return names


def name_classes(names: Iterable[Sequence[str]]) -> tuple[ClassName, ...]:
    """Return classes whose keys are their names as written, and whose prompt names are spoken."""
    listed = list(names)
    spoken = speak_names([of[0] for of in listed])
    return tuple(
        ClassName(of[0], tuple(dict.fromkeys((*said, *map(speak_name, of[1:])))))
        for of, said in zip(listed, spoken, strict=True)
    )


def speak_name(name: str) -> str:
    """Return a class name as prompts say it: without underscores."""
    return " ".join(name.replace("_", " ").split()) or name


def speak_names(keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the names that prompts say for class keys.

    WordNet ids become their names. `001.Black_footed_Albatross` loses its number if all keys count on like that.
    """
    plain = _drop_numbers(keys)
    return [_names_of_key(key, text) for key, text in zip(keys, plain, strict=True)]


def _names_of_key(key: str, text: str) -> tuple[str, ...]:
    match = _SYNSET.fullmatch(key)
    if match and match[2]:
        return (speak_name(match[2]),)
    return (match and names_of_synset(match[1])) or (speak_name(text),)


def _drop_numbers(keys: Sequence[str]) -> Sequence[str]:
    """Return the keys without the leading numbers that only count them: all from 0 or 1 on, or those with zeros."""
    matches = {key: match for key in keys if (match := _COUNTED.fullmatch(key))}
    width = {len(match[1]) for match in matches.values() if match[1].startswith("0") and len(match[1]) > 1}
    if len(matches) < len(keys):
        matches = {key: match for key, match in matches.items() if len(match[1]) in width}
    plain = [matches[key][2] if key in matches else key for key in keys]
    numbers = {int(match[1]) for match in matches.values()}
    counts = len(numbers) > 1 and len(numbers) == len(matches) and (width or min(numbers) <= 1)
    return plain if counts and len(set(plain)) == len(plain) else keys


def describe_doubtful_names(classes: Sequence[ClassName], *, only: Collection[str] = ()) -> list[str]:
    """Return notes on class names that say little in a prompt, as numbers and ids do; ``only`` names some kinds."""
    notes: list[str] = []
    for pattern, said in _DOUBTFUL:
        if only and said not in only:
            continue
        found = [c.names[0] for c in classes if pattern.fullmatch(c.names[0])]
        if found:
            shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            notes.append(f"{len(found):,} of {len(classes):,} class names {said}: {shown}")
    return notes


def describe_changed_names(classes: Sequence[ClassName], remedy: str) -> list[str]:
    """Return a note on class names that are not what the data says, with an example; none if they are alike."""
    changed = [c for c in classes if _loses_number(c)]
    if not changed:
        return []
    example = f"'{changed[0].key}' is '{changed[0].names[0]}'"
    return [Remark(f"classes are named without the number or id of their key ({len(changed):,}): {example} ({remedy})")]


def _loses_number(named: ClassName) -> bool:
    leaf = named.key.rpartition("/")[2]
    begins = re.match(r"n\d{8}|\d+", leaf)
    return begins is not None and not any(begins[0] in name for name in named.names)
