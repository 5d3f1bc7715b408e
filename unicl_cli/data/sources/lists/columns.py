"""The role of each column: chosen by an option, known by its name, or found by what its cells hold."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.data.class_entry import find_repeated
from unicl_cli.data.sources.lists.cells import column_of, is_plain, keys_of, look_up, looks_like_image, text_of
from unicl_cli.data.sources.lists.column_names import (
    WEAK_SPLITS,
    image_columns,
    numbered_columns,
    squeeze,
    usual_columns,
)
from unicl_cli.data.sources.lists.image_paths import ImagePaths
from unicl_cli.data.sources.lists.labels import holds_marks, mark_columns, mark_columns_error
from unicl_cli.data.sources.lists.record import Columns, ListOptions, Reader, is_blank
from unicl_cli.data.sources.lists.row_choice import RowChoice, read_choice
from unicl_cli.data.sources.lists.split_rule import SplitRule, read_rule
from unicl_cli.data.sources.splits import split_of
from unicl_cli.errors import UniclError, did_you_mean

SAMPLE = 64
"""Number of records whose cells show what a column holds."""
_MOST, _LONGEST = 40, 60
"""Maximum number of columns that a message lists, and of characters of each."""
_PIXELS = ("pixel", "pixels")
"""Names of columns that hold the pixels of an image, as Kaggle's copies of MNIST and FER2013 do."""
ALL = "all"
"""The value of ``onehot`` for all columns of marks that are left over."""
FOLDER = "folder"
"""The label ``folder``: the name of the folder that an image lies in."""


class Roles(NamedTuple):
    """The columns of a list by role, the rule of its splits, and notes on columns that share a name."""

    columns: Columns
    splits: SplitRule
    notes: tuple[str, ...] = ()
    choice: RowChoice = RowChoice()
    is_onehot: bool = False
    """True if each label column is a class, whose cells are marks."""

    def has_sets(self, options: ListOptions) -> bool:
        """Return whether an image may have several labels."""
        return options.sets is not None or self.is_onehot or len(self.columns.label) > 1


def resolve_roles(path: Path, reader: Reader, options: ListOptions, kind: str) -> Roles:
    """Return the columns that a source of this kind needs. UniclError, with the way out, if one is missing."""
    return _Resolver(path, reader, options, kind).resolve()


def used_columns(columns: Columns, names: Sequence[str]) -> list[str]:
    """Return those columns of a list that have a role, or hold a path of one."""
    given = (name for of in columns.by_role().values() for name in of)
    return list(dict.fromkeys(column for name in given if (column := column_of(name, names))))


class _Resolver:
    """The list and the cells of its first records, while roles are given to its columns."""

    def __init__(self, path: Path, reader: Reader, options: ListOptions, kind: str) -> None:
        self.path, self.reader, self.options, self.kind = path, reader, options, kind
        self.names = list(reader.columns)
        filled = (record for record in reader.records(self.names) if not is_blank(record))
        self.sample: list[Mapping[str, Any]] = [record.cells for record in islice(filled, SAMPLE) if record.cells]
        self.taken: set[str] = set()
        self.notes: list[str] = []
        self._check_options()

    def _check_options(self) -> None:
        """Raise UniclError for options of labels that say nothing here."""
        given = [name for name in ("sets", "onehot", "negative", "group") if getattr(self.options, name) is not None]
        if given and self.kind != "labels":
            raise UniclError(f"{self.path}: {given[0]}= is an option of labels", f"use --labels, or remove {given[0]}=")
        others = [name for name in ("label", "sets") if getattr(self.options, name) is not None]
        if self.options.onehot is not None and others:
            raise UniclError(f"{self.path}: onehot= and {others[0]}= both name labels", f"remove {others[0]}=")
        if self.options.negative is not None and self.options.onehot is None:
            raise UniclError(f"{self.path}: negative= is the mark for no, but no column holds marks", "add onehot=")

    def resolve(self) -> Roles:
        # roles that are given come first, so that none of their columns is taken for another role
        given = {role: self._given(role) for role in ("image", "caption", "label", "key")}
        media = tuple((kind, name) for kind in self.options.media for name in self._given(kind))
        onehot = self._given("onehot") if self.options.onehot not in (None, ALL) else []
        split, rule = self._split()
        choice = read_choice(self.path, self.options, self.names, self.kind)
        self._take(choice.column)
        image = self._take(given["image"] or self._image())
        captions = given["caption"] or self._captions()
        if self.options.onehot == ALL:
            onehot = self._marked()
        label = (onehot or given["label"] or self._label()) if self.kind == "labels" else []
        self.taken.update(column_of(name, self.names) or name for name in label)
        if not image:
            raise self._missing_image_error()
        if self.kind == "captions" and not captions:
            raise self._missing_error(
                "caption", "; several columns: ?caption=caption_0,caption_1 or ?caption=caption_*"
            )
        if self.kind == "labels" and not label:
            raise self._missing_label_error()
        keys = given["key"] or [name for name in usual_columns("key", self.names) if name not in self.taken]
        key = next(iter(keys), None)
        columns = Columns(image, tuple(captions), tuple(label), split, key, media, choice.column)
        return Roles(columns, rule, (*self.notes, *self._note_repeated(columns)), choice, bool(onehot))

    def _note_repeated(self, columns: Columns) -> tuple[str, ...]:
        """Return notes on roles whose column has a name that others have too, unless its number chose it."""
        notes: list[str] = []
        for role, names in columns.by_role().items():
            written: str = getattr(self.options, role) or ""
            chosen = {self.names[int(part)] for part in written.split(",") if _is_number_of(part, self.names)}
            shared = [name for name in self.reader.repeated if name in {*names} - chosen]
            notes += [self._note_shared(name, role) for name in shared]
        return tuple(notes)

    def _note_shared(self, name: str, role: str) -> str:
        places = self.reader.repeated[name]
        return (
            f"{self.path.name}: {len(places)} columns are named '{name}', and the first is the {role}; to choose "
            f"another by its number, add ?{role}={places[1]}"
        )

    def _take(self, names: Sequence[str] | str | None) -> str | None:
        """Mark a column as taken and return it."""
        name = names if isinstance(names, str) or names is None else next(iter(names), None)
        if name is not None:
            self.taken.add(column_of(name, self.names) or name)
        return name

    def _given(self, role: str) -> list[str]:
        """Return the columns that the option of a role names; several only for captions and labels."""
        written: str | None = getattr(self.options, role)
        if written is None:
            return []
        names: list[str] = []
        for part in [written] if written in self.names else written.split(","):
            is_folder = role == "label" and part == FOLDER and part not in self.names
            found = [FOLDER] if is_folder else self._matching(part.strip())
            if found is None:
                raise self._unknown_error(part.strip())
            names += found
        if twice := find_repeated(names):
            raise UniclError(f"{self.path}: {role}={written} names column '{twice}' twice", "name each column once")
        if role == "label" and self.options.sets is None and mark_columns(self.sample, names):
            raise mark_columns_error(self.path, self.options, names)
        if len(names) > 1 and role not in ("caption", "label", "onehot"):
            raise UniclError(f"{self.path}: {role}={written} names {len(names)} columns", "name one of them")
        if role != "key":  # a key may be the column of another role
            self.taken.update(column_of(name, self.names) or name for name in names)
        return names

    def _matching(self, name: str) -> list[str] | None:
        """Return the columns that a name, number, path or pattern means; None if there are none."""
        if name in self.names:
            return [name]
        if _is_number_of(name, self.names):
            return [self.names[int(name)]]
        if "*" in name:
            return [column for column in self.names if fnmatchcase(column, name)] or None
        column = column_of(name, self.names)
        if column is None:
            return None
        if self.sample and all(_is_empty(look_up(cells, name)) for cells in self.sample):
            inside = next((keys for cells in self.sample if (keys := keys_of(cells.get(column)))), [])
            raise UniclError(
                f"{self.path}: nothing at '{name}'{did_you_mean(name, [f'{column}.{key}' for key in inside])}",
                f"choose from the keys of {column}: {_list_names(inside) or 'none'}",
            )
        return [name]

    def _image(self) -> str | None:
        usual = [name for name in usual_columns("image", self.names) if name not in self.taken]
        if usual and self.reader.has_header:
            return usual[0]
        free = [name for name in self.names if name not in self.taken]
        found = image_columns([[cells.get(name) for name in free] for cells in self.sample])
        if len(found) == 1:
            return free[found[0]]
        return free[0] if len(free) == 1 and not self.reader.has_header else None

    def _captions(self) -> list[str]:
        """Return the columns of captions; those that a kind does not need are taken only if they hold text."""
        free = [name for name in self.names if name not in self.taken]
        usual = usual_columns("caption", free)[:1] or numbered_columns("caption", free)
        if self.kind == "captions" and not usual:
            usual = self._only(free, _may_be_caption)
        elif self.kind != "captions":
            usual = [name for name in usual if all(_is_text(cells.get(name)) for cells in self.sample)]
        self.taken.update(usual)
        return usual

    def _label(self) -> list[str]:
        free = [name for name in self.names if name not in self.taken]
        return usual_columns("label", free)[:1] or self._only(free)

    def _marked(self) -> list[str]:
        """Return the columns left over whose filled cells are mostly 0, 1 or -1, and note the others."""
        keys = usual_columns("key", self.names)
        free = [name for name in self.names if name not in self.taken and name not in keys]
        found = [name for name in free if holds_marks(self.sample, name)]
        if not found:
            raise UniclError(f"{self.path}: onehot=all: no column of 0 and 1 is left", "name the columns: onehot=a,b")
        if others := [name for name in free if name not in found]:
            self.notes.append(f"{self.path.name}: onehot=all: left out columns with other cells: {_list_names(others)}")
        return found

    def _only(self, free: Sequence[str], fits: Callable[[Any], bool] | None = None) -> list[str]:
        """Return the only column left, or the only one with cells that fit; keys and pandas' index are not."""
        keys = usual_columns("key", free)
        left = [name for name in free if name and name not in keys and not name.lower().startswith("unnamed:")]
        if len(left) > 1 and fits is not None:
            left = [name for name in left if any(fits(cells.get(name)) for cells in self.sample)]
        return left if len(left) == 1 else []

    def _split(self) -> tuple[str | None, SplitRule]:
        given = self.options.split
        if given is not None:
            if names := self._matching(given):
                return self._take(names), SplitRule()
            if rule := read_rule(self.path, given):
                return None, rule
            raise self._unknown_error(given, "; or name a split such as test, or a file that lists its images")
        weak = [name for name in self.names if squeeze(name) in WEAK_SPLITS and self._holds_splits(name)]
        usual = [name for name in (*usual_columns("split", self.names), *weak) if name not in self.taken]
        return self._take(usual[:1]), SplitRule()

    def _holds_splits(self, name: str) -> bool:
        cells = [text_of(cells.get(name)).strip() for cells in self.sample]
        return bool(cells) and all(map(split_of, cells))

    def _unknown_error(self, name: str, more: str = "") -> UniclError:
        header = ", and add ?header=true if its first line has the names" if not self.reader.has_header else ""
        return UniclError(
            f"{self.path}: no column '{name}'{did_you_mean(name, self.names)}",
            f"choose from: {_list_names(self.names)}{header}{more}",
        )

    def _missing_error(self, role: str, more: str = "") -> UniclError:
        message = f"{self.path}: no {role} column (columns: {_list_names(self.names)})"
        if len(self.names) == 1 and self.reader.delimiter is not None:
            return UniclError(message, f"name the separator: {self._src(sep='tab')} (or , ; | space)")
        header = "" if self.reader.has_header else ", with header=true if the first line has the names"
        return UniclError(message, f"name it: {self._src(**{role: 'COLUMN'})}{more}{header}")

    def _src(self, **more: str) -> str:
        return self.options.src(self.path, **more)

    def _missing_image_error(self) -> UniclError:
        """Return the error; if a column holds the names of files, it says which and where they are."""
        error = self._missing_error("image")
        words = [*self.names, *(text_of(cell) for cells in self.sample[:1] for cell in cells.values())]
        if any(squeeze(word[:_LONGEST]).rstrip("0123456789") in _PIXELS for word in words):
            return UniclError(str(error), "save the pixels as image files, and write a list of these files")
        paths = ImagePaths(self.path, self.options)
        labels = usual_columns("label", self.names)
        for name in [name for name in self.names if name not in labels]:
            cells = [
                text for row in self.sample if is_plain(row.get(name)) and (text := text_of(row.get(name)).strip())
            ]
            if name and (found := paths.locate(cells)):
                return UniclError(str(error), f"name it: {self._src(image=name, **found)}")
        return error

    def _missing_label_error(self) -> UniclError:
        free = [name for name in self.names if name not in self.taken and name]
        if marks := mark_columns(self.sample, free):
            return mark_columns_error(self.path, self.options, marks)
        if several := numbered_columns("label", free):
            return UniclError(
                f"{self.path}: several columns of labels ({_list_names(several)})",
                f"take them as one set: {self._src(label=','.join(several), group='labels')}; or name one of them: "
                f"{self._src(label=several[0])}",
            )
        error, folder = self._missing_error("label"), f"take the folder of each image: {self._src(label=FOLDER)}"
        if len(self.names) == 1:
            return UniclError(str(error), f"{folder}, or {error.hint}, or use --images for images without labels")
        return UniclError(str(error), f"{error.hint}, or {folder}")


def _is_number_of(name: str, names: Sequence[str]) -> bool:
    """Return whether an option is the number of a column, from 0."""
    return name.isdecimal() and len(name) < 10 and int(name) < len(names)


def _list_names(names: Sequence[str]) -> str:
    """Return the first names of columns, the long ones cut, as a message shows them."""
    shown = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in names[:_MOST]]
    return ", ".join(shown) + (f", … ({len(names):,})" if len(names) > _MOST else "")


def _is_empty(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(item is None for item in values)


def _may_be_caption(cell: Any) -> bool:
    """Return whether a cell holds letters that are not a path, or texts further inside."""
    text = text_of(cell).strip() if is_plain(cell) else ""
    return isinstance(cell, list | dict) or (any(map(str.isalpha, text)) and not looks_like_image(text))


def _is_text(value: Any) -> bool:
    return is_plain(value) or (isinstance(value, list) and all(map(is_plain, value)))
