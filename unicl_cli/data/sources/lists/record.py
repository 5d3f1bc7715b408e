"""The types that lists pass on: records with cells by column, lines with roles, and the options of both."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from unicl_cli.data.media import KINDS
from unicl_cli.errors import UniclError

MAX_COLUMNS = 10_000
MAX_NAME = 1000
"""Maximum number of columns of a list, and of characters of their names."""
BAD_LINE = "bad line: "
"""Start of the ``ref`` of a row that stands for a line which could not be read; its place and fault follow."""


@dataclass(frozen=True)
class ListOptions:
    """The options of a list as the user wrote them: a column for each role, then how the file is read."""

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    split: str | None = None
    where: str | None = None
    key: str | None = None
    header: bool | None = None
    sep: str | None = None
    encoding: str | None = None
    root: str | None = None
    suffix: str = ""
    skip_urls: bool = False
    join: str | None = None
    classes: str | None = None
    first: int | None = None
    missing: str = ""
    keep: str = ""
    sets: str | None = None
    onehot: str | None = None
    negative: str | None = None
    group: str | None = None
    audio: str | None = None
    depth: str | None = None
    thermal: str | None = None
    imu: str | None = None

    @property
    def media(self) -> tuple[str, ...]:
        """The kinds of media for which a column is given."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    def src(self, path: Path, **more: str | None) -> str:
        """Return the source with its options and ``more``, as it is written on the command line."""
        given = {**{item.name: getattr(self, item.name) for item in fields(self)}, **more}
        defaults = {item.name: item.default for item in fields(self)}
        spelled = [f"{name}={_spell(value)}" for name, value in given.items() if value != defaults[name]]
        return f"'{path}?{'&'.join(spelled)}'" if spelled else str(path)

    @property
    def named(self) -> list[str]:
        """The columns that are given by name, not by number."""
        several = (self.caption, self.label, self.onehot)
        parts = [part.strip() for given in several for part in (given or "").split(",")]
        media = (getattr(self, kind) for kind in KINDS)
        chosen_by = (self.where or "").partition(":")[0]
        given = (self.image, *parts, *several, self.split, chosen_by, self.key, *media)
        return [name for name in given if name and not name.isdecimal()]


def _spell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("%", "%25").replace("&", "%26").replace("?", "%3F")


class StoredImage(NamedTuple):
    """A cell whose image lies in the list itself, at this row."""

    row: int


class Record(NamedTuple):
    """One record of a list: cells by column, or a ``fault`` that says why there are none."""

    place: str
    cells: Mapping[str, Any]
    fault: str = ""


def is_blank(record: Record) -> bool:
    """Return whether a record says nothing, as the empty rows of a spreadsheet: it has no fault and no filled cell."""
    return not record.fault and not any(map(is_filled, record.cells.values()))


def is_filled(value: Any) -> bool:
    """Return whether a cell holds anything: no text of white space, None or NaN, nor a list or object of such."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | dict):
        items = cast("list[Any]", list(value.values()) if isinstance(value, dict) else value)
        return any(map(is_filled, items))
    return value is not None and value == value


class Columns(NamedTuple):
    """Column of each role, or a path into its objects (``captions.raw``); None or nothing if the list has none."""

    image: str | None
    caption: tuple[str, ...]
    label: tuple[str, ...]
    split: str | None
    key: str | None
    media: tuple[tuple[str, str], ...] = ()
    """The kind and the column of each item of media."""
    where: str | None = None
    """The column that lines are chosen by."""

    def by_role(self) -> dict[str, tuple[str, ...]]:
        """Return the columns and paths of each role that has some."""
        single = {"image": self.image, "split": self.split, "key": self.key, "where": self.where, **dict(self.media)}
        several = {"caption": self.caption, "label": self.label}
        return {role: names for role, names in several.items() if names} | {
            role: (name,) for role, name in single.items() if name
        }


class Label(NamedTuple):
    """A label as it is written, and the number of its column among those of labels."""

    column: int
    text: str


class LabelSet(NamedTuple):
    """The labels of a line, and the numbers of the label columns that say nothing about its image."""

    labels: tuple[Label, ...] = ()
    unknown: tuple[int, ...] = ()

    def map_texts(self, texts: Mapping[str, str]) -> "LabelSet":
        """Return the labels with other texts, of those that ``texts`` names; equal ones are kept once."""
        mapped = (label._replace(text=texts.get(label.text, label.text)) for label in self.labels)
        return self._replace(labels=tuple(dict.fromkeys(mapped)))


NO_LABELS = LabelSet()


class Line(NamedTuple):
    """One record by role: ``ref`` is a path, or ``row:N`` inside the file, and so is the place of each of its media.

    With a ``fault`` the ref is BAD_LINE with the place and the fault; ``hint`` says how to fix it, if that is special.
    """

    place: str
    key: str
    ref: str
    texts: tuple[str, ...]
    found: LabelSet
    split: str
    fault: str
    hint: str = ""
    media: tuple[tuple[str, str], ...] = ()


def check_width(path: Path, columns: int) -> None:
    """Raise UniclError for more columns than a list of images has."""
    if columns > MAX_COLUMNS:
        raise UniclError(
            f"{path}: {columns:,} columns; at most {MAX_COLUMNS:,} are read",
            "write a list with only the columns of images, captions, labels and splits",
        )


def check_columns(path: Path, columns: Collection[str]) -> None:
    """Raise UniclError for more columns than a list of images has, or longer names."""
    check_width(path, len(columns))
    if long := next((name for name in columns if len(name) > MAX_NAME), None):
        raise UniclError(
            f"{path}: a column is named '{long[:40]}…', {len(long):,} characters; at most {MAX_NAME:,} are read",
            "check that the list begins with the names of its columns, or add ?header=false",
        )


class Reader(Protocol):
    """An open list: its columns and its records. ``delimiter`` is None unless cells are separated by one."""

    has_header: bool
    delimiter: str | None
    hint: str

    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def repeated(self) -> Mapping[str, Sequence[int]]:
        """The numbers of the columns that share a name, by this name; the first of them keeps it."""
        ...

    def class_names(self, column: str, /) -> Sequence[str]:
        """Return the names that the file itself gives the numbers of a column; none if it gives none."""
        ...

    def class_groups(self, key: str, /) -> Mapping[str, str]:
        """Return the group of each class under a key of COCO's categories, ``supercategory``; none in other lists."""
        ...

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        """Yield the records with the given columns; ``spill`` is a last column that keeps unquoted separators."""
        ...
