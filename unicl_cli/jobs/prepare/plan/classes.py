"""Classes of a corpus: those of its sources merged by key, with notes on doubtful names and an example of the first."""

import re
import unicodedata
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from unicl_cli.contracts import ClassName
from unicl_cli.core.class_groups import describe_place
from unicl_cli.data.class_numbers import describe_doubtful_names
from unicl_cli.data.number_spellings import number_of
from unicl_cli.data.text import clean
from unicl_cli.errors import Remark, UniclError
from unicl_cli.jobs.prepare.plan.rows import Rows
from unicl_cli.pages.text import shorten

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Line breaks and other control characters."""
_COPY = re.compile(r"(?i)copy of (.+)|(.+?)(?: copy| kopie| copia| copie| ?\(\d+\))+")
"""The name of a copied folder: `Copy of cat`, `cat (1)`, `cat - Copy`."""
_SHOWN = 40
"""Maximum number of characters of a label in a note."""
FoldedName = tuple[str | Decimal, ...]
SHOWN = 3
"""Classes that the closing table shows with an image each."""


class ClassExample(NamedTuple):
    """One of the first classes with the key of an image; "" if none has its label."""

    number: int
    name: str
    image: str


class ClassImages(NamedTuple):
    """The first classes with an image each, and the numbers of the classes that have none."""

    examples: tuple[ClassExample, ...]
    empty: frozenset[int]


def merge_classes(classes: Sequence[tuple[str, Sequence[ClassName]]], notes: list[str]) -> tuple[ClassName, ...]:
    """Return the ordered union by key; names from later sources are appended.

    UniclError if a number stands for different names in two sources.
    """
    merged: dict[str, ClassName] = {}
    homes: dict[str, str] = {}
    for name, of in classes:
        shared = [c for c in of if c.key in merged]
        if shared:
            share = f"{len(shared)} of its {len(of)} classes"
            notes.append(Remark(f"{name}: {share} are shared with earlier sources (same key)"))
        _check_shared(shared, merged, homes, name, notes)
        for c in of:
            names = tuple(dict.fromkeys((*merged[c.key].names, *c.names) if c.key in merged else c.names))
            place = merged.get(c.key, c)
            if (place.group, place.parent) != (c.group, c.parent):
                raise UniclError(
                    f"class '{c.key}' is in {describe_place(place)} in {homes[c.key]}, and in {describe_place(c)} in "
                    f"{name}",
                    "give a class one place, or the two different names with ?classes=FILE",
                )
            merged[c.key] = c._replace(names=names)
            homes.setdefault(c.key, name)
    return tuple(merged.values())


def _check_shared(
    shared: Sequence[ClassName], merged: Mapping[str, ClassName], homes: Mapping[str, str], name: str, notes: list[str]
) -> None:
    """Compare the names of classes with one key in two sources; numbers are keys only where no names are known."""
    differ = [c for c in shared if not {n.casefold() for n in c.names} & {n.casefold() for n in merged[c.key].names}]
    if differ and differ[0].key.isdecimal():
        key = differ[0].key
        raise UniclError(
            f"class {key} is '{merged[key].names[0]}' in {homes[key]}, and '{differ[0].names[0]}' in {name}",
            "name the classes of both sources with ?classes=FILE",
        )
    if differ:
        first, before = differ[0], merged[differ[0].key]
        notes.append(
            f"{name}: shared classes with other names ({len(differ)}): {first.key} is '{before.names[0]}' in "
            f"{homes[first.key]}, and '{first.names[0]}' here"
        )
    numbers = [c.key for c in shared if c.key.isdecimal()]
    if numbers:
        notes.append(
            f"{name}: shared classes are numbers, for example {numbers[0]}: check that they mean the same in "
            f"{homes[numbers[0]]}, or name them with ?classes=FILE"
        )


def describe_names(classes: Sequence[ClassName]) -> list[str]:
    """Return notes on labels that go over several lines, on equal names, and on names that say little in a prompt."""
    keys = [c.key for c in classes]
    alike = _describe_equal_names(classes) + _describe_copies(classes)
    return _describe_broken_keys(keys) + alike + describe_doubtful_names(classes)


def _describe_broken_keys(keys: Collection[str]) -> list[str]:
    """Return a note on classes whose label goes over several lines, or has other control characters; none if all fit.

    Prompts say such a label in one line, as if nothing were odd about it.
    """
    found = [key for key in keys if _CONTROL.search(key)]
    if not found:
        return []
    shown = ", ".join(f"'{shorten(key, _SHOWN)}'" for key in found[:3]) + (", …" if len(found) > 3 else "")
    return [
        f"labels with a line break or another control character, each taken as one class ({len(found):,} of "
        f"{len(keys):,} classes): {shown}: check that none of them names several classes"
    ]


def _describe_equal_names(classes: Iterable[ClassName]) -> list[str]:
    """Return one note on classes with the same prompt name, apart from its spelling; none if all differ."""
    by_name: dict[FoldedName, list[ClassName]] = {}
    for c in classes:
        by_name.setdefault(fold_name(c.names[0]), []).append(c)
    alike = [of for of in by_name.values() if len(of) > 1]
    if not alike:
        return []
    shown = "; ".join(f"'{of[0].names[0]}': {', '.join(c.key for c in of[:4])}" for of in alike[:3])
    more = "; …" if len(alike) > 3 else ""
    number = "1 name is" if len(alike) == 1 else f"{len(alike):,} names are"
    return [
        f"{number} shared by several classes, so their prompts are equal: {shown}{more}: check that they are not one "
        "class written in several ways; ?classes=FILE names the classes of a list or folder, and for folders "
        "?names=path tells them apart and ?depth=1 joins them"
    ]


def _describe_copies(classes: Sequence[ClassName]) -> list[str]:
    """Return a note on classes named like a copy of another, as file managers name them; none if all differ."""
    plain = {fold_name(c.names[0]): c.names[0] for c in classes}
    copies = {c.names[0]: match[1] or match[2] for c in classes if (match := _COPY.fullmatch(c.names[0]))}
    found = [f"'{name}' of '{plain[of]}'" for name, left in copies.items() if (of := fold_name(left)) in plain]
    if not found:
        return []
    shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    return [f"classes named like a copy of another ({len(found):,}): {shown}: make one class of them if they are one"]


def fold_name(name: str) -> FoldedName:
    """Return the words of a name without case, Unicode form, width and invisible characters; numbers by their value."""
    plain = unicodedata.normalize("NFKC", clean(name) or name).casefold()
    words = plain.replace("_", " ").split()
    whole = " ".join(words)
    return tuple(_fold_word(word) for word in ([whole] if number_of(whole) is not None else words))


def _fold_word(word: str) -> str | Decimal:
    number = number_of(word)
    return word if number is None else number


def find_class_images(classes: Sequence[ClassName], rows: Iterable[Rows], left_out: Container[str] = ()) -> ClassImages:
    """Return the first classes with the key of an image each, and the classes without one, apart from rows left out."""
    met: dict[int, str] = {}
    for of in rows:
        for row in of.by_source():
            if (key := of.mapping.key(row)) not in left_out:
                for label in of.mapping.labels(row):
                    met.setdefault(label, key)
    parents = {c.parent for c in classes}  # a class above others may have no image of its own
    empty = frozenset(number for number, c in enumerate(classes) if number not in met and c.key not in parents)
    examples = tuple(ClassExample(number, c.names[0], met.get(number, "")) for number, c in enumerate(classes[:SHOWN]))
    return ClassImages(examples, empty)


def describe_empty_classes(classes: Sequence[ClassName], empty: Collection[int], what: str) -> list[str]:
    """Return a note on the ``empty`` classes, which says ``what`` they are; none if there are none."""
    if not empty:
        return []
    names = [classes[number].names[0] for number in sorted(empty)]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return [f"{what} ({len(names):,} of {len(classes):,}): {shown}"]


def describe_examples(examples: Sequence[ClassExample]) -> list[dict[str, Any]]:
    """Return the examples as `--json` prints them."""
    return [{"id": each.number, "class": each.name, "image": each.image or None} for each in examples]


def format_examples(report: Mapping[str, Any]) -> list[str]:
    """Return a line of the closing table for each example of ``report``."""
    return [f"class {each['id']}: {each['class']} ({each['image'] or 'no image'})" for each in report["class_examples"]]
