"""Data sets of the `datasets` library as sources: saved to disk, Parquet in the hub's layout, or on the hub."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from unicl_cli.contracts import ClassName, Row
from unicl_cli.data.class_entry import NameList
from unicl_cli.data.class_numbers import (
    LabelledClasses,
    RowLabels,
    describe_changed_names,
    read_names,
    set_row_labels,
)
from unicl_cli.data.pictures import ImageError, read_file
from unicl_cli.data.sources.hf_folder import is_saved_dataset
from unicl_cli.data.sources.hf_labels import LabelColumn, find_classes, item_of, with_whole_numbers
from unicl_cli.data.sources.hf_loading import load_splits
from unicl_cli.data.sources.hf_parquet import SUFFIX, count_rows, note_unlisted, open_images, read_column
from unicl_cli.data.sources.hub import HUB, datasets_cache, hf_home
from unicl_cli.data.sources.lists.column_names import usual_columns
from unicl_cli.data.sources.lists.label_cells import SetCells, read_separator
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.data.sources.splits import split_of
from unicl_cli.errors import UniclError


class ChosenColumns(NamedTuple):
    """Columns named by options, the names of integer classes, and the option for several labels."""

    image: str | None
    caption: str | None
    label: str | None
    classes: NameList | None
    first: int | None
    sets: str | None


class LoadedDataset(NamedTuple):
    """A data set as `datasets` describes it: the files of each split, and its features by column.

    ``features`` are those of the first split; the numbers of another may stand for other names.
    """

    files: dict[str, list[Path]]
    features: Mapping[str, Any]
    of_split: Mapping[str, Mapping[str, Any]]


class HubData:
    """Rows of Parquet files, or of Arrow files that `datasets` wrote; a row's ``ref`` is ``file?image=column#row``.

    A worker therefore opens that one file, and needs neither the library nor the hub. The file is relative to ``path``
    or to the cache of `datasets`, where its name contains the hub's commit.
    """

    templates = "clip80"

    def __init__(self, path: str, kind: str, chosen: ChosenColumns, config: str | None, revision: str | None) -> None:
        self.path, self.kind, self.chosen, self.config, self.revision = path, kind, chosen, config, revision
        self.only: tuple[str, ...] = ()
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Notes for `prepare`, complete once all rows were read."""
        sets = self._label.sets if self.kind == "labels" else None
        return [*self._notes, *(sets.notes(self.path) if sets else ())]

    @cached_property
    def loaded(self) -> LoadedDataset:
        found = load_splits(self.path, self.config, self.revision)
        if not found:
            raise UniclError(f"{self.path}: no splits", "save it again, with rows")
        if missing := set(self.only) - set(found):
            raise UniclError(f"{self.path}: no split '{min(missing)}'", f"choose from: {', '.join(found)}")
        self._notes += note_unlisted(Path(self.path), found)
        kept = {name: split for name, split in found.items() if not self.only or name in self.only}
        files = {name: split.files for name, split in kept.items()}
        features = {name: split.features for name, split in kept.items()}
        return LoadedDataset(files, next(iter(features.values())), features)

    @cached_property
    def splits(self) -> Sequence[str]:
        """The splits, with `validation` renamed to `val` unless that name is taken."""
        named = list(self._names)
        return [s for s in ("train", "val", "test") if s in named] + [
            s for s in named if s not in ("train", "val", "test")
        ]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Split name in the corpus -> in the data set."""
        ours = {split_of(name) or name: name for name in self.loaded.files}
        return ours if len(ours) == len(self.loaded.files) else {name: name for name in self.loaded.files}

    @cached_property
    def columns(self) -> tuple[str, str | None, str | None]:
        """The image, caption and label columns. UniclError lists the columns if one is missing."""
        features = self.loaded.features
        likely = [c for c in _usual_columns("image", features) if c != "url" and self._may_hold_images(features[c])]
        image = self._chosen_column("image") or self._pick_column(
            "image", _columns_of_type(features, "Image") or likely
        )
        texts = [c for c in features if c != image and _is_text(features[c])]
        caption = self._chosen_column("caption") or next(iter(_usual_columns("caption", texts)), None)
        if self.kind == "images":
            return image, None, None
        if self.kind == "captions":
            return image, caption or self._pick_column("caption", texts), None
        return image, caption, self._label_column()

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The names given by ``classes`` or by the label column of any split, else the distinct texts, sorted."""
        return self._labelled.classes

    @cached_property
    def _labelled(self) -> LabelledClasses:
        if self.columns[2] is None:
            return LabelledClasses((), {})
        if self.chosen.classes:
            self._notes += self.chosen.classes.notes
        labelled = find_classes(self._label, self.chosen.classes, self.chosen.first, self._notes)
        self._notes += describe_changed_names(labelled.classes, "classes=FILE gives them others")
        return labelled

    @cached_property
    def _label(self) -> LabelColumn:
        texts = [c for c, f in self.loaded.features.items() if _is_text(f) and not hasattr(f, "feature")]
        others = [c for c in texts if c not in self.columns]
        sets = None if self.chosen.sets is None else SetCells(read_separator(self.path, self.chosen.sets))
        column = LabelColumn(self.path, self.columns[2] or "", self.loaded.of_split, self._column, others, sets)
        return with_whole_numbers(column, self._notes)

    def rows(self, split: str) -> Sequence[Row]:
        """Return the rows in the order of the data set; a key is ``split/number``."""
        theirs = self._names[split]
        image, caption, label = self.columns
        texts = self._column(theirs, caption) if caption else None
        labels = self._labels(theirs, label) if label else None
        return spool_rows(
            Row(
                f"{split}/{number:08d}",
                ref,
                () if texts is None else _texts(next(texts)),
                *(RowLabels() if labels is None else next(labels)),
            )
            for number, ref in enumerate(self._refs(theirs, image))
        )

    def read(self, row: Row) -> dict[str, bytes]:
        """Return the image's bytes as they were stored."""
        place, _, number = row.ref.rpartition("#")
        file, _, column = place.rpartition("?image=")
        if file.endswith(SUFFIX):
            found = open_images(str(self._base(file) / file), column).read(int(number))
            return {"image": read_file(self._file(found)) if isinstance(found, str) else found}
        cell = _open_arrow(str(self._base(file) / file)).column(column)[int(number)].as_py()
        stored: dict[str, Any] = cell if isinstance(cell, dict) else {_kind_of_cell(cell): cell}
        if data := stored.get("bytes"):
            return {"image": data}
        if path := stored.get("path"):
            return {"image": read_file(self._file(path))}
        raise ImageError("empty", "no image in this row")

    def _base(self, file: str) -> Path:
        """Return the folder that a file of rows is relative to."""
        is_own = not self.path.startswith(HUB) and (file.endswith(SUFFIX) or self._is_saved)
        return Path(self.path) if is_own else datasets_cache()

    @cached_property
    def _is_saved(self) -> bool:
        return is_saved_dataset(Path(self.path))

    def _file(self, path: str) -> Path:
        """Return the path of an image in the data set's directory, or in the libraries' cache."""
        here = Path(self.path) if not self.path.startswith(HUB) else hf_home()
        file = (here / path).resolve()
        if not file.is_relative_to(here.resolve()):
            raise ImageError("bad_path", f"{path} is outside {here}")
        return file

    def _may_hold_images(self, feature: Any) -> bool:
        dtype = getattr(feature, "dtype", "")
        paths = dtype == "string" and not self.path.startswith(HUB)
        return paths or isinstance(feature, dict) or dtype in ("binary", "large_binary")

    def _chosen_column(self, role: str) -> str | None:
        column: str | None = getattr(self.chosen, role)
        if column is not None and column not in self.loaded.features:
            raise UniclError(f"{self.path}: no column '{column}'", f"choose from: {self._describe_columns()}")
        if column is not None and not _can_be(role, self.loaded.features[column]):
            what = f"column '{column}' holds {_type_name(self.loaded.features[column])}, not {role}s"
            raise UniclError(f"{self.path}: {what}", f"choose from: {self._describe_columns()}")
        return column

    def _label_column(self) -> str:
        features = self.loaded.features
        items = {column: item_of(feature) for column, feature in features.items()}
        named = _columns_of_type(features, "ClassLabel") or _columns_of_type(items, "ClassLabel")
        usual = [c for c in _usual_columns("label", named or items) if _may_be_label(items[c])]
        found = self._chosen_column("label") or self._pick_column("label", named if len(named) == 1 else usual or named)
        if items[found] is not features[found] and self.chosen.sets is None:
            raise UniclError(
                f"{self.path}: column '{found}' holds a list of labels, and an image takes one",
                f"take them all: '{self.path}?label={found}&sets=true'",
            )
        return found

    def _pick_column(self, role: str, candidates: Sequence[str]) -> str:
        """Return the only candidate, or the one with a usual name."""
        if len(candidates) == 1:
            return candidates[0]
        if usual := _usual_columns(role, candidates):
            return usual[0]
        said = f"several {role} columns: {', '.join(candidates)}" if candidates else f"no {role} column"
        raise UniclError(
            f"{self.path}: {said} (columns: {self._describe_columns()})", f"name it: '{self.path}?{role}=COLUMN'"
        )

    def _describe_columns(self) -> str:
        return ", ".join(f"{name} ({_type_name(feature)})" for name, feature in self.loaded.features.items())

    def _refs(self, split: str, image: str) -> Iterator[str]:
        for file in self.loaded.files[split]:
            name = file.relative_to(self._base(file.name).absolute()).as_posix()
            rows = count_rows(file) if file.suffix == SUFFIX else _open_arrow(str(file)).num_rows
            for number in range(rows):
                yield f"{name}?image={image}#{number}"

    def _column(self, split: str, column: str) -> Iterator[Any]:
        for file in self.loaded.files[split]:
            if file.suffix == SUFFIX:
                yield from read_column(file, column)
                continue
            table = _open_arrow(str(file))
            if column not in table.column_names:  # a test split without answers
                yield from repeat(None, table.num_rows)
                continue
            for chunk in table.column(column).iterchunks():
                yield from chunk.to_pylist()

    def _labels(self, split: str, column: str) -> Iterator[RowLabels]:
        numbers = self._labelled.numbers
        for at, value in enumerate(self._column(split, column)):
            labels = self._label.labels_of(split, at, value)
            for label in labels or ():
                if label not in numbers:
                    raise UniclError(
                        f"{self.path}: {split} row {at}: label '{label}' is not a class "
                        f"(number of classes: {len(self.classes):,})",
                        "add it to the file given by ?classes=FILE, or choose splits: ?splits=NAME,NAME",
                    )
            known = () if labels is None else ("",)
            yield set_row_labels((numbers[label] for label in labels or ()), known, ("",))


def hf(  # noqa: PLR0913 - a factory's signature is its options
    *,
    kind: str,
    path: str,
    image: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    classes: str | None = None,
    first: int | None = None,
    sets: str | None = None,
    splits: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> HubData:
    """A data set of the `datasets` library: a directory of `save_to_disk`, one of Parquet files, or `hf:org/name`.

    Columns are found by their type and usual names. ``splits=train,test`` selects splits; ``classes`` is a file with
    the names of integer labels, and ``first`` the number of its first name; ``config`` and ``revision`` are the hub's.
    ``sets=true`` takes all labels of a list, and ``sets=;`` those between separators in a text.
    """
    names = read_names(classes, first)
    source = HubData(path, kind, ChosenColumns(image, caption, label, names, first, sets), config, revision)
    source.only = tuple(name.strip() for name in (splits or "").split(",") if name.strip())
    return source


@cache
def _open_arrow(file: str) -> pa.Table:  # pyright: ignore[reportUnknownParameterType] - no stubs
    return pa.ipc.open_stream(pa.memory_map(str(Path(file).absolute()))).read_all()  # maps the file, copies nothing


def _columns_of_type(features: Mapping[str, Any], name: str) -> list[str]:
    return [column for column, feature in features.items() if type(feature).__name__ == name]


def _kind_of_cell(cell: object) -> str:
    return "path" if isinstance(cell, str) else "bytes"


def _type_name(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _usual_columns(role: str, columns: Iterable[str]) -> list[str]:
    """Return the columns with a usual name for the role, the most usual first."""
    there = list(columns)
    return [*usual_columns(role, there), *(c for c in there if role == "label" and c.lower() == "fine_label")]


def _is_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)  # several captions are a list
    return getattr(inner, "dtype", "") in ("string", "large_string") and type(inner).__name__ == "Value"


def _can_be(role: str, feature: Any) -> bool:
    """Return whether a column's type fits a role; labels are checked with their names."""
    if role == "caption":
        return _is_text(feature)
    held = str(getattr(feature, "dtype", ""))
    return role != "image" or not held.startswith(("int", "uint", "float", "bool"))


def _may_be_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel" or str(getattr(feature, "dtype", "")).startswith(
        ("int", "uint", "float", "double", "string")
    )


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if text and text.strip())
