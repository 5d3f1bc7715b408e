"""From a record to a line: the cells of each role, with a fault where one does not fit."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unicl_cli.data.sources.lists.cells import (
    NOTHING,
    CellError,
    answers_of,
    column_of,
    is_plain,
    is_url,
    is_web_url,
    key_of_url,
    look_up_cell,
    odd_cell_error,
    parse_list,
    text_of,
    texts_of,
)
from unicl_cli.data.sources.lists.columns import Roles
from unicl_cli.data.sources.lists.image_paths import ImagePaths
from unicl_cli.data.sources.lists.label_cells import LabelReader
from unicl_cli.data.sources.lists.labels import LISTS_ONLY, WholeListError, label_set_hint
from unicl_cli.data.sources.lists.record import BAD_LINE, NO_LABELS, Line, Record, StoredImage, is_blank
from unicl_cli.errors import Remark, UniclError

URL_FAULT = "the image is a URL, which ?skip_urls=true leaves out"
SCHEME_HINT = "only http and https are downloaded: copy the images to this machine and write their paths into the list"


class LineBuilder:
    """Lines of a list, and counts of what was unusual in its cells."""

    def __init__(self, path: Path, roles: Roles, paths: ImagePaths) -> None:
        self.path, self.columns, self.splits, self.paths = path, roles.columns, roles.splits, paths
        self.choice = roles.choice
        self.labels = LabelReader(path, roles, paths.options)
        self.counts: Counter[str] = Counter()
        self.nothing: Counter[str] = Counter()

    def lines(self, records: Iterator[Record]) -> Iterator[Line]:
        """Yield a line per record that is not blank. UniclError for a cell that shows the list to be read wrongly."""
        for record in records:
            if is_blank(record):
                self.counts["blank"] += 1
                continue
            try:
                if record.fault:
                    raise CellError(record.fault)
                line = self._line(record)
            except WholeListError as error:
                hint = error.hint or label_set_hint(self.path, self.paths.options, LISTS_ONLY, self.columns.label)
                raise UniclError(f"{self.path}: {record.place}: {error.fault}", hint) from error
            except CellError as error:
                ref = f"{BAD_LINE}{record.place}: {error.fault}"
                line = Line(record.place, record.place, ref, (), NO_LABELS, "", error.fault, error.hint)
            if line is not None:
                yield line

    def _line(self, record: Record) -> Line | None:
        """Return the line of a record; None if it is not chosen, or its image is in none of the splits."""
        cells, at = record.cells, self.columns
        if not self.choice.keeps(cells):
            self.counts["not chosen"] += 1
            return None
        ref, key = self._image(cells)
        split = self.splits.split(text_of(self._plain(cells, at.split, "split")).strip(), ref)
        if split is None:
            self.counts["in no split"] += 1
            return None
        key = text_of(self._plain(cells, at.key, "key")) or key
        texts, labels, media = self._texts(cells), self.labels.read(cells, ref), self._media(cells)
        return Line(record.place, key, ref, texts, labels, split, "", media=media)

    def _image(self, cells: Mapping[str, Any]) -> tuple[str, str]:
        """Return the image's ref and key. CellError for an object or nothing."""
        name = self.columns.image or ""
        value = look_up_cell(cells, name)
        if isinstance(value, StoredImage):
            return f"row:{value.row}", f"{value.row:08d}"
        cell = text_of(_only_path(value, name)).strip()
        if not cell:
            raise CellError(f"no {name}")
        if is_url(cell):
            return self._url(cell)
        if "\0" in cell:
            raise CellError(f"{name} has a NUL character")
        ref = self.paths.ref(cell)
        return ref, ref

    def _url(self, cell: str) -> tuple[str, str]:
        if self.paths.options.skip_urls:
            raise CellError(URL_FAULT)
        if not is_web_url(cell):
            raise CellError(f"the image is a URL of scheme '{cell.partition(':')[0]}'", SCHEME_HINT)
        if self.columns.media:
            raise CellError("the image is a URL, but its media are files", "download the images first")
        return cell, key_of_url(cell)

    def _media(self, cells: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Return kind and place of each item of media whose cell is filled. CellError for a URL or an object."""
        found: list[tuple[str, str]] = []
        for kind, name in self.columns.media:
            value = look_up_cell(cells, name)
            if isinstance(value, StoredImage):
                found.append((kind, f"row:{value.row}"))
            elif cell := text_of(_only_path(value, name)).strip():
                if is_url(cell) or "\0" in cell:
                    raise CellError(f"{name} holds no path of a file", "write the paths of local files")
                found.append((kind, self.paths.media_ref(cell)))
        return tuple(found)

    def _texts(self, cells: Mapping[str, Any]) -> tuple[str, ...]:
        found: list[str] = []
        for name in self.columns.caption:
            value = look_up_cell(cells, name)
            texts = texts_of(value, name)
            if isinstance(value, str) and texts != [value] and parse_list(value) is not None:
                self.counts["lists in cells"] += 1
            turns = cells.get(column_of(name, cells) or name)
            if isinstance(turns, list) and (answers := answers_of(turns)):
                self.counts["questions"] += len(turns) - len(answers)
            found += texts
        self.nothing.update(word for text in found if (word := text.strip()).lower() in NOTHING)
        return tuple(found)

    def _plain(self, cells: Mapping[str, Any], name: str | None, role: str) -> Any:
        value = None if name is None else look_up_cell(cells, name)
        if not is_plain(value):
            raise odd_cell_error(value, name or "", role)
        return value

    def check_choices(self, kept: int) -> None:
        """Raise UniclError if ``where`` or ``split`` leave out what they should not, or all lines."""
        self.choice.check(self.path, self.paths.options, kept, self.counts["not chosen"])
        self.splits.check(self.path, kept, self.counts["in no split"])

    def notes(self) -> list[str]:
        """Return notes for `prepare` on cells that were not taken literally."""
        name, counts = self.path.name, self.counts
        notes = self.labels.notes()
        if counts["blank"]:
            notes.append(f"{name}: lines without a filled cell, left out: {counts['blank']:,}")
        if counts["not chosen"]:
            notes.append(Remark(f"{name}: lines left out by where=: {counts['not chosen']:,}"))
        if counts["lists in cells"]:
            lists = counts["lists in cells"]
            notes.append(Remark(f"{name}: cells that hold a list, each text of which is a caption: {lists:,}"))
        if counts["questions"]:
            left_out = counts["questions"]
            notes.append(Remark(f"{name}: turns of conversations that are not answers, left out: {left_out:,}"))
        if counts["in no split"]:
            of = "folders named like splits" if self.splits.by_folder else "files of split="
            notes.append(f"{name}: lines whose image is in none of the {of}, left out: {counts['in no split']:,}")
        if words := self.nothing:
            shown = ", ".join(f"'{word}'" for word in sorted(words))
            notes.append(
                f"{name}: captions that look like an empty cell ({shown}), kept: {words.total():,}; "
                "clear these cells to drop them"
            )
        return notes


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
