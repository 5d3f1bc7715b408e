"""From a record to a line: the cells of each role, with a fault where one does not fit."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from unicl_cli.data.sources.lists.cells import (
    MAX_CELL,
    NOTHING,
    CellError,
    answers_of,
    column_of,
    is_plain,
    is_url,
    look_up,
    odd_cell_error,
    parse_list,
    text_of,
    texts_of,
)
from unicl_cli.data.sources.lists.columns import FOLDER, Roles
from unicl_cli.data.sources.lists.image_paths import ImagePaths
from unicl_cli.data.sources.lists.labels import MAX_LABEL, ONE_LABEL, SeveralLabelsError, label_of
from unicl_cli.data.sources.lists.record import BAD_LINE, Line, Record, StoredImage, is_blank
from unicl_cli.data.sources.text_file import describe_length
from unicl_cli.errors import Remark, UniclError

URL_FAULT = "the image is a URL, but only local files can be read"
URL_HINT = "download the images first (for example with img2dataset) and write their paths into the list"


class LineBuilder:
    """Lines of a list, and counts of what was unusual in its cells."""

    def __init__(self, path: Path, roles: Roles, paths: ImagePaths) -> None:
        self.path, self.columns, self.splits, self.paths = path, roles.columns, roles.splits, paths
        self.as_captions = replace(paths.options, label=None, classes=None).src(path, caption=roles.columns.label or "")
        self.counts: Counter[str] = Counter()
        self.nothing: Counter[str] = Counter()
        self.missing = frozenset(word.strip() for word in paths.options.missing.split(","))

    def lines(self, records: Iterator[Record]) -> Iterator[Line]:
        """Yield a line per record that is not blank. UniclError for an image with several labels."""
        for record in records:
            if is_blank(record):
                self.counts["blank"] += 1
                continue
            try:
                if record.fault:
                    raise CellError(record.fault)
                line = self._line(record)
            except SeveralLabelsError as error:
                hint = error.hint or ONE_LABEL.format(src=self.as_captions)
                raise UniclError(f"{self.path}: {record.place}: {error.fault}", hint) from error
            except CellError as error:
                ref = f"{BAD_LINE}{record.place}: {error.fault}"
                line = Line(record.place, record.place, ref, (), "", "", error.fault, error.hint)
            if line is not None:
                yield line

    def _line(self, record: Record) -> Line | None:
        """Return the line of a record; None if its image is in none of the splits."""
        cells, at = record.cells, self.columns
        ref, key = self._image(cells)
        split = self.splits.split(text_of(self._plain(cells, at.split, "split")).strip(), ref)
        if split is None:
            self.counts["in no split"] += 1
            return None
        key = text_of(self._plain(cells, at.key, "key")) or key
        return Line(record.place, key, ref, self._texts(cells), self._label(cells, ref), split, "")

    def _image(self, cells: Mapping[str, Any]) -> tuple[str, str]:
        """Return the image's ref and key. CellError for a URL, an object or nothing."""
        name = self.columns.image or ""
        value = _look_up(cells, name)
        if isinstance(value, StoredImage):
            return f"row:{value.row}", f"{value.row:08d}"
        cell = text_of(_only_path(value, name)).strip()
        if not cell:
            raise CellError(f"no {name}")
        if is_url(cell):
            raise CellError(URL_FAULT, f"{URL_HINT}, or leave such lines out: ?skip_urls=true")
        if "\0" in cell:
            raise CellError(f"{name} has a NUL character")
        ref = self.paths.ref(cell)
        return ref, ref

    def _texts(self, cells: Mapping[str, Any]) -> tuple[str, ...]:
        found: list[str] = []
        for name in self.columns.caption:
            value = _look_up(cells, name)
            texts = texts_of(value, name)
            if isinstance(value, str) and texts != [value] and parse_list(value) is not None:
                self.counts["lists in cells"] += 1
            turns = cells.get(column_of(name, cells) or name)
            if isinstance(turns, list) and (answers := answers_of(turns)):
                self.counts["questions"] += len(turns) - len(answers)
            found += texts
        self.nothing.update(word for text in found if (word := text.strip()).lower() in NOTHING)
        return tuple(found)

    def _label(self, cells: Mapping[str, Any], ref: str) -> str:
        name = self.columns.label
        if name is None:
            return ""
        if name == FOLDER and name not in cells:
            return PurePosixPath(ref.replace("\\", "/")).parent.name
        label = label_of(_look_up(cells, name), name)
        if len(label) > MAX_LABEL:
            raise CellError(describe_length(name, len(label), MAX_LABEL))
        return "" if label in self.missing else label

    def _plain(self, cells: Mapping[str, Any], name: str | None, role: str) -> Any:
        value = None if name is None else _look_up(cells, name)
        if not is_plain(value):
            raise odd_cell_error(value, name or "", role)
        return value

    def notes(self) -> list[str]:
        """Return notes for `prepare` on what was read in another way than as it stands."""
        name, counts = self.path.name, self.counts
        notes: list[str] = []
        if counts["blank"]:
            notes.append(f"{name}: lines without a filled cell, left out: {counts['blank']:,}")
        if counts["lists in cells"]:
            lists = counts["lists in cells"]
            notes.append(Remark(f"{name}: cells that hold a list, each text of which is a caption: {lists:,}"))
        if counts["questions"]:
            left_out = counts["questions"]
            notes.append(Remark(f"{name}: turns of conversations that are not answers, left out: {left_out:,}"))
        if counts["in no split"]:
            notes.append(
                f"{name}: lines whose image is in none of the files of split=, left out: {counts['in no split']:,}"
            )
        if words := self.nothing:
            shown = ", ".join(f"'{word}'" for word in sorted(words))
            notes.append(
                f"{name}: captions that stand for an empty cell ({shown}), kept: {words.total():,}; empty them"
            )
        return notes


def _look_up(cells: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column or path. CellError for a cell that is longer than any text, before it is parsed."""
    cell = cells[name] if name in cells else cells.get(column_of(name, cells) or name)
    if isinstance(cell, str) and len(cell) > MAX_CELL:
        raise CellError(describe_length(name, len(cell), MAX_CELL))
    return look_up(cells, name)


def _only_path(value: Any, name: str) -> Any:
    """Return the path in an image's cell: plain, in Hugging Face's object or a list of one. CellError for others."""
    if isinstance(value, dict) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return value["path"]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            raise CellError(f"{name} holds {len(value)} images", "write a line for each image")
        return value[0]
    if isinstance(value, list) and value and all(map(is_plain, value)):
        raise CellError(f"{name} holds numbers, not an image file", "save the pixels as image files")
    if not is_plain(value):
        raise odd_cell_error(value, name, "image")
    return value
