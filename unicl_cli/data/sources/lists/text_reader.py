"""The reader of lists that are lines of text: CSV, TSV, and cells between bars or blanks."""

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, dropwhile, islice
from pathlib import Path

from unicl_cli.data.sources.lists.cells import looks_like_image
from unicl_cli.data.sources.lists.column_names import is_header
from unicl_cli.data.sources.lists.record import ListOptions, Record, check_columns, check_width, is_filled
from unicl_cli.data.sources.lists.separator import choose_dialect, split_at_blanks, split_rows
from unicl_cli.data.sources.text_file import UTF8, LongLine, read_lines
from unicl_cli.errors import UniclError

END = "\x1a"
"""A line added after the last one of a CSV: if it ends up inside a cell, a quote was never closed."""
_HEAD = 200
_HEAD_CHARACTERS = 4_000_000
"""Lines, and their characters, that are looked at before the columns are known."""

_Row = tuple[int, list[str], str]
"""The number of a line, its cells, and the fault that hides them."""


class TextReader:
    """A text list; without quotes where tabs or blanks separate, so that a stray ``"`` swallows no lines."""

    hint = "check the separator (?sep=…), the header (?header=true or false) and the columns (?image=…&caption=…)"

    def __init__(self, path: Path, options: ListOptions) -> None:
        self.path, self.encoding = path, options.encoding or UTF8
        head = self._read_head()
        self.dialect = choose_dialect(head, path.suffix.lower(), options.sep, str(path))
        self.delimiter: str | None = self.dialect.delimiter
        number, first, fault = next(dropwhile(_is_blank, self._rows()), (0, [], "the list is empty"))
        if not first:
            place = f"line {number}: " if number else ""
            raise UniclError(f"{path}: {place}{fault}", "write a line for each image")
        check_width(path, len(first))
        rows = [line.rstrip("\r\n") for line in head[self.dialect.skipped :] if line.strip()]
        others = [cells for cells in split_rows(rows, self.dialect) if not _is_blank((0, cells, ""))][1:]
        first = first if self.dialect.is_quoted else _complete_header(first, others)
        self.has_header = is_header(first, others, options.named) if options.header is None else options.header
        self.columns: tuple[str, ...] = (
            _name_columns(first) if self.has_header else tuple(str(number) for number in range(len(first)))
        )
        check_columns(path, self.columns)
        self.repeated: Mapping[str, Sequence[int]] = _find_repeated(first) if self.has_header else {}

    def class_names(self, _column: str, /) -> Sequence[str]:
        return ()

    def class_groups(self, _key: str, /) -> Mapping[str, str]:
        return {}

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        rows, count = self._rows(), len(self.columns)
        if self.has_header:
            rows = dropwhile(_is_blank, rows)
            next(rows)
        for row in rows:
            number, cells, fault = row
            cells = self._fit_cells(cells, spill)
            if fault or _is_blank(row):
                yield Record(f"line {number}", {}, fault)
            elif len(cells) == count:
                yield Record(f"line {number}", dict(zip(self.columns, cells, strict=True)))
            else:
                found = f"{len(cells)} of" if len(cells) < count else f"{len(cells)} cells for"
                yield Record(f"line {number}", {}, f"{found} {count} columns")

    def _read_head(self) -> list[str]:
        head: list[str] = []
        size = 0
        for line in islice(read_lines(self.path, self.encoding, str(self.path)), _HEAD):
            head.append("\n" if isinstance(line, LongLine) else line)
            size += len(line)
            if size > _HEAD_CHARACTERS:
                break
        return head

    def _fit_cells(self, cells: list[str], spill: str | None) -> list[str]:
        """Drop blank cells beyond the last column, and join those that belong to the last column."""
        count = len(self.columns)
        while len(cells) > count and not cells[-1].strip():
            cells.pop()
        if len(cells) > count and self.columns[-1] == spill:
            return [*cells[: count - 1], self.dialect.delimiter.join(cells[count - 1 :])]
        return cells

    def _rows(self) -> Iterator[_Row]:
        """Yield the number of each line that is not blank, from 1, with its cells or the fault that hides them."""
        is_quoted, delimiter = self.dialect.is_quoted, self.dialect.delimiter
        lines = read_lines(self.path, self.encoding, str(self.path), "" if is_quoted else "\n")
        start = self.dialect.skipped + 1
        lines = islice(lines, self.dialect.skipped, None)
        if is_quoted:
            yield from self._quoted(lines, start)
            return
        for number, line in enumerate(lines, start):
            if isinstance(line, LongLine):
                yield number, [], line.fault
            elif text := line.rstrip("\r\n"):
                cells = split_at_blanks(text, self.dialect.limit) if delimiter == " " else text.split(delimiter)
                yield number, cells, ""

    def _quoted(self, lines: Iterator[str], start: int) -> Iterator[_Row]:
        faults: list[str] = []
        records = csv.reader(
            chain(_note_long(lines, faults), [END]),
            delimiter=self.dialect.delimiter,
            skipinitialspace=self.dialect.is_spaced,
        )
        before = start - 1
        try:
            for cells in records:
                if faults:
                    yield start, [], faults[0]
                    faults.clear()
                elif cells and cells[-1].endswith(END):
                    if cells == [END]:
                        return
                    raise csv.Error("the list ends inside quotes")
                elif cells:
                    yield start, cells, ""
                start = before + records.line_num + 1
        except csv.Error as error:
            raise UniclError(
                f"{self.path}: line {start}: {error}", "close the quote that is opened in this line"
            ) from error


def _complete_header(first: list[str], others: Sequence[Sequence[str]]) -> list[str]:
    """Return the first line, with a name for the images before it if only they have none, as R and CelebA write it."""
    is_short = bool(others) and all(len(row) == len(first) + 1 and looks_like_image(row[0]) for row in others)
    return ["image", *first] if is_short and not any(map(looks_like_image, first)) else first


def _is_blank(row: _Row) -> bool:
    """Return whether a row has no filled cell, as a spreadsheet writes its empty ones: ``,,``."""
    _, cells, fault = row
    return not fault and not any(map(is_filled, cells))


def _note_long(lines: Iterator[str], faults: list[str]) -> Iterator[str]:
    """Pass lines on, and note the faults of those that are too long, before the record that they belong to."""
    for line in lines:
        if isinstance(line, LongLine):
            faults.append(line.fault)
        yield line


def _name_columns(first: Sequence[str]) -> tuple[str, ...]:
    """Return the header; of two equal names, the first column keeps it."""
    names: dict[str, None] = {}
    for at, cell in enumerate(first):
        name = cell.strip()
        names[name if name not in names else f"{name} ({at})"] = None
    return tuple(names)


def _find_repeated(first: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for at, cell in enumerate(first):
        places.setdefault(cell.strip(), []).append(at)
    return {name: of for name, of in places.items() if len(of) > 1}
