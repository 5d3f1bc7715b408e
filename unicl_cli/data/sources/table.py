"""A list as a source: CSV, TSV, JSONL or Parquet, a line per image, with its caption, label or split."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.class_names import ClassEntry, NameList
from unicl_cli.data.class_numbers import (
    LabelledClasses,
    describe_changed_names,
    match_labels,
    name_classes,
    pair_names,
    read_names,
)
from unicl_cli.data.pictures import Extent, ImageError, file_extent, read_file
from unicl_cli.data.sources.join_lines import LineReading, join_lines
from unicl_cli.data.sources.list_readers import (
    URL_FAULT,
    Columns,
    Line,
    ParquetImages,
    Reader,
    looks_like_image,
    open_reader,
)
from unicl_cli.data.sources.splits import split_of
from unicl_cli.errors import UniclError

MAX_BAD = 0.05
"""Share of unreadable lines above which a list is rejected as another format."""
SAMPLE = 100
"""Images whose files are looked for before a list is accepted."""
NAMES = {
    "image": "image file filename file_name filepath file_path path img image_path img_path image_file image url",
    "caption": "caption captions text texts title sentence sentences description alt alt_text",
    "label": "label labels class category class_name classname label_name target species",
    "split": "split subset fold partition",
    "key": "key id",
}
"""Column names that need no option; the first match wins, and case does not matter."""


class Table:
    """Rows of one list; images are paths relative to it, or bytes inside a Parquet file."""

    templates = "clip80"

    def __init__(self, path: Path, kind: str, chosen: Columns, header: bool | None, names: NameList | None) -> None:  # noqa: FBT001
        self.path, self.kind, self.chosen, self.header, self.names = path, kind, chosen, header, names
        self.first: int | None = None
        self.notes: list[str] = []

    @cached_property
    def reader(self) -> Reader:
        return open_reader(self.path, self.header, known={word for words in NAMES.values() for word in words.split()})

    @cached_property
    def columns(self) -> Columns:
        """The chosen columns, else those with a known name, else the only one left."""
        roles = {role: self._column(role) for role in Columns._fields}
        needed = {"labels": ("image", "label"), "captions": ("image", "caption"), "images": ("image",)}[self.kind]
        left = [name for name in self.reader.columns if name not in roles.values()]
        for role in needed:
            if roles[role] is None and len(left) == 1 and (role != "image" or not self.reader.has_header):
                roles[role] = left.pop()
            if roles[role] is None:
                raise self._missing_column_error(role)
        if self.chosen.key is None and list(roles.values()).count(roles["key"]) > 1:
            roles["key"] = None  # `id` is the label, for example
        return Columns(**roles)

    def _missing_column_error(self, role: str) -> UniclError:
        columns = self.reader.columns
        message = f"{self.path}: no {role} column (columns: {', '.join(columns)})"
        if len(columns) == 1 and role != "image":
            return UniclError(message, "check the separator: .csv uses commas, .tsv uses tabs")
        return UniclError(message, f"name it: '{self.path}?{role}=COLUMN'")

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The names given by ``classes``, of the column or beside it, else the distinct labels (numbers by value)."""
        return self._labelled.classes if self.kind == "labels" else ()

    @cached_property
    def _labelled(self) -> LabelledClasses:
        labels = {line.label for line in self._lines if line.label}
        if names := self._find_names():
            self.notes += names.notes
            labelled = match_labels(names, labels, self.first)
        else:
            labelled = self._number_labels(labels)
        self.notes += describe_changed_names(labelled.classes, "classes=FILE gives others")
        return labelled

    def _number_labels(self, labels: set[str]) -> LabelledClasses:
        """Return a class for each label, which is its name."""
        ordered = sorted(labels, key=int) if self._numbered else sorted(labels)
        keys = [label for label in ordered if label != str(NO_LABEL) or not self._numbered]
        classes = name_classes([(key,) for key in keys])
        return LabelledClasses(classes, {key: number for number, key in enumerate(keys)})

    def _find_names(self) -> NameList | None:
        """Return the names given for the labels, by a file, the label column or one beside it."""
        if self.names:
            return self.names
        if names := self.reader.class_names.get(self.columns.label or ""):
            return NameList(str(self.path), tuple(ClassEntry((name,), str(at)) for at, name in enumerate(names)))
        return self._names_beside() if self._numbered else None

    def _names_beside(self) -> NameList | None:
        """Return the names of numbered classes from the one column that has a text of its own for each number."""
        numbers = [line.label for line in self._lines]
        found: dict[str, dict[str, str]] = {}
        for column in self.reader.columns:
            if column not in self.columns:
                texts = (line.label for line in self.reader.lines(self.columns._replace(label=column)))
                if names := pair_names(zip(numbers, texts, strict=True)):
                    found[column] = names
        usual = [column for column in found if column.lower() in NAMES["label"].split()]
        fit = usual or list(found)
        if len(fit) != 1:
            if fit:
                self.notes.append(f"{self.path.name}: columns {', '.join(fit)} name the labels: add ?label={fit[0]}")
            return None
        column = fit[0]
        names = found[column]
        number, name = next(iter(names.items()))
        note = f"{self.path.name}: column '{column}' names the labels, for example {number}: {name}"
        return NameList(str(self.path), tuple(ClassEntry((name,), number) for number, name in names.items()), (note,))

    @cached_property
    def splits(self) -> Sequence[str]:
        met = {self._split(line) for line in self._lines}
        return [s for s in ("train", "val", "test") if s in met] + sorted(met - {"train", "val", "test"})

    def rows(self, split: str) -> list[Row]:
        return self._rows.get(split, [])

    def read(self, row: Row) -> dict[str, bytes]:
        if not row.ref:
            raise ImageError("bad_line", row.key)
        if row.ref.startswith("row:"):
            return {"image": self._images.read(int(row.ref[4:]))}
        return {"image": read_file(self._file(row.ref))}

    def stamp(self, row: Row) -> int:
        """Return the size of the image's file; -1 if it is missing."""
        if row.ref.startswith("row:"):
            return 0  # rows and sample images put the list's own bytes into the fingerprint
        try:
            return self._file(row.ref).stat().st_size if row.ref else -1
        except OSError:
            return -1

    def extent(self, row: Row) -> Extent | None:
        inside = not row.ref or row.ref.startswith("row:")
        return None if inside else file_extent(self._file(row.ref))

    def _file(self, ref: str) -> Path:
        r"""Return the path relative to the list; one written on Windows (``cat\1.jpg``) works everywhere."""
        file = self.path.parent / ref
        return file if "\\" not in ref or file.exists() else self.path.parent / ref.replace("\\", "/")

    @cached_property
    def _images(self) -> ParquetImages:
        return ParquetImages(self.path, self.columns.image or "")

    @cached_property
    def _lines(self) -> list[Line]:
        lines = list(self.reader.lines(self.columns))
        bad = [line for line in lines if line.fault]
        if not lines:
            raise UniclError(f"{self.path}: no rows, only a header", "add ?header=false if the first line is a row")
        self._check_sides(lines)
        if len(bad) > MAX_BAD * len(lines):
            first = bad[0]
            hint = "check the separator, the header (?header=true or false) and the columns (?image=…&caption=…)"
            if first.fault == URL_FAULT:
                hint = "download the images first, and write their paths into the list"
            raise UniclError(
                f"{self.path}: {len(bad)} of {len(lines)} lines cannot be read; {first.place}: {first.fault}",
                hint,
            )
        self._check_files([line.ref for line in lines if line.ref and not line.ref.startswith("row:")])
        return lines

    def _check_sides(self, lines: list[Line]) -> None:
        """Raise UniclError if the image and caption columns are swapped."""
        paths = sum(looks_like_image(line.ref) for line in lines)
        texts = sum(any(map(looks_like_image, line.texts)) for line in lines)
        if 2 * texts > len(lines) > 2 * paths:
            image, caption = self.columns.image, self.columns.caption
            raise UniclError(
                f"{self.path}: column '{image}' holds texts and column '{caption}' holds images",
                f"swap them: '{self.path}?image={caption}&caption={image}'",
            )

    def _check_files(self, refs: list[str]) -> None:
        """Raise UniclError if none of a sample of images exists: the paths are relative to another place."""
        sample = refs[:: max(1, len(refs) // SAMPLE)]
        if sample and not any(self._file(ref).exists() for ref in sample):
            raise UniclError(
                f"{self.path}: its images do not exist, for example {self.path.parent / sample[0]}",
                "move the list beside the images, or correct the paths, which are relative to the list",
            )

    @cached_property
    def _numbered(self) -> bool:
        """True if all labels are integers. UniclError for fractions among them."""
        labels = [line for line in self._lines if line.label]
        if not labels or not all(re.fullmatch(r"[+-]?\d+(\.\d*)?", line.label) for line in labels):
            return False
        if broken := next((line for line in labels if "." in line.label), None):
            raise UniclError(
                f"{self.path}: {broken.place}: label {broken.label} is not an integer", "write 1 instead of 1.0"
            )
        if negative := next((line for line in labels if int(line.label) < NO_LABEL), None):
            raise UniclError(
                f"{self.path}: {negative.place}: label {negative.label} is negative",
                "use -1 only, which means no label",
            )
        return True

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        """Rows by split, made once after ``classes`` and ``splits``; then the lines, 400 bytes each, are freed."""
        _ = self.splits
        _ = self.classes
        read = LineReading(self._image, self._split, self._label)
        joined = join_lines(self._lines, read, path=self.path.name, id_column=self.columns.key)
        self.notes += joined.notes
        del self._lines
        return joined.rows

    def _image(self, line: Line) -> str:
        """Return the identity of a line's image: its path, or its bytes in a Parquet list of captions."""
        if not line.ref.startswith("row:"):
            windows = "\\" in line.ref
            return os.path.normpath(self._file(line.ref) if windows else os.path.join(self._folder, line.ref))  # noqa: PTH118
        if self.kind != "captions":
            return line.ref  # data sets of labels repeat an image now and then, also with another label
        return self._digests[int(line.ref[4:])]

    @cached_property
    def _folder(self) -> str:
        return str(self.path.parent)

    @cached_property
    def _digests(self) -> list[str]:
        return self._images.digests()

    def _label(self, line: Line) -> int:
        if self.kind != "labels" or not line.label or (self._numbered and int(line.label) == NO_LABEL):
            return NO_LABEL
        number = self._labelled.numbers.get(line.label)
        if number is not None:
            return number
        shown = ", ".join([c.key for c in self.classes[:3]] + ["…"] * (len(self.classes) > 3))
        raise UniclError(
            f"{self.path}: {line.place}: unknown label {line.label} (number of classes: {len(self.classes):,})",
            f"use a number or name from the list of classes ({shown}), or -1 for no label",
        )

    @cached_property
    def _whole_split(self) -> str | None:
        """The split of all lines, if ``split`` names one instead of a column."""
        named = self.chosen.split
        return split_of(named) if named is not None and named not in self.reader.columns else None

    def _split(self, line: Line) -> str:
        if self._whole_split:
            return self._whole_split
        return (split_of(line.split) or line.split) if line.split else "train"

    def _column(self, role: str) -> str | None:
        chosen = getattr(self.chosen, role)
        if role == "split" and self._whole_split:
            return None
        if chosen is None:
            return next((c for word in NAMES[role].split() for c in self.reader.columns if c.lower() == word), None)
        if chosen in self.reader.columns:
            return chosen
        if chosen.isdecimal() and int(chosen) < len(self.reader.columns):
            return self.reader.columns[int(chosen)]
        raise UniclError(f"{self.path}: no column '{chosen}'", f"choose from: {', '.join(self.reader.columns)}")


def table(  # noqa: PLR0913 - a factory's signature is its options
    *,
    kind: str,
    path: str,
    image: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    split: str | None = None,
    key: str | None = None,
    header: bool | None = None,
    classes: str | None = None,
    first: int | None = None,
) -> Table:
    """A CSV, TSV, JSONL or Parquet list, with columns given by name or by number from 0.

    ``classes`` is a file of class names: lines, or ids with names. If labels are positions in it, ``first`` is the
    number of the first name (0 or 1). TSV has no quotes. Without ``header``, the first line is a header
    if it holds a known column name. Lines with the same image and different captions become one row.
    """
    list_path = Path(path)
    if not list_path.is_file():
        raise UniclError(f"{path}: no such list", "check the path of the .csv, .tsv, .jsonl or .parquet file")
    chosen = Columns(image, caption, label, split, key)
    source = Table(list_path, kind, chosen, header, read_names(classes, first))
    source.first = first
    return source
