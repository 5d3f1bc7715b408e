"""The reader of lists that are lines of text: CSV, TSV, and cells between bars or blanks."""

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from unicl_cli.data.sources.lists.column_names import is_header
from unicl_cli.data.sources.lists.record import ListOptions, Record
from unicl_cli.data.sources.lists.separator import choose_dialect, split_at_blanks, split_rows
from unicl_cli.data.sources.text_file import UTF8, read_lines
from unicl_cli.errors import UniclError

END = "\x1a"
"""A line added after the last one of a CSV: if it ends up inside a cell, a quote was never closed."""
_HEAD = 200
"""Lines that are looked at before the columns are known."""


class TextReader:
    """A text list; without quotes where tabs or blanks separate, so that a stray ``"`` swallows no lines."""

    class_names: Mapping[str, Sequence[str]] = {}
    hint = "check the separator (?sep=…), the header (?header=true or false) and the columns (?image=…&caption=…)"

    def __init__(self, path: Path, options: ListOptions) -> None:
        self.path, self.encoding = path, options.encoding or UTF8
        head = list(islice(read_lines(path, self.encoding, str(path)), _HEAD))
        self.dialect = choose_dialect(head, path.suffix.lower(), options.sep, str(path))
        self.delimiter: str | None = self.dialect.delimiter
        first = next(self._rows(), (0, []))[1]
        if not first:
            raise UniclError(f"{path}: the list is empty", "write a line for each image")
        rows = [line.rstrip("\r\n") for line in head[self.dialect.skipped :] if line.strip()]
        others = split_rows(rows[1:], self.dialect)
        self.has_header = is_header(first, others, options.named) if options.header is None else options.header
        self.columns: tuple[str, ...] = (
            _name_columns(first) if self.has_header else tuple(str(number) for number in range(len(first)))
        )

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        rows, count = self._rows(), len(self.columns)
        if self.has_header:
            next(rows)
        for number, cells in rows:
            cells = self._fit_cells(cells, spill)
            if len(cells) == count:
                yield Record(f"line {number}", dict(zip(self.columns, cells, strict=True)))
            else:
                found = f"{len(cells)} of" if len(cells) < count else f"{len(cells)} cells for"
                yield Record(f"line {number}", {}, f"{found} {count} columns")

    def _fit_cells(self, cells: list[str], spill: str | None) -> list[str]:
        """Drop blank cells beyond the last column, and join those that belong to the last column."""
        count = len(self.columns)
        while len(cells) > count and not cells[-1].strip():
            cells.pop()
        if len(cells) > count and self.columns[-1] == spill:
            return [*cells[: count - 1], self.dialect.delimiter.join(cells[count - 1 :])]
        return cells

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of each line that is not blank, from 1, and its cells."""
        is_quoted, delimiter = self.dialect.is_quoted, self.dialect.delimiter
        lines = read_lines(self.path, self.encoding, str(self.path), "" if is_quoted else "\n")
        start = self.dialect.skipped + 1
        lines = islice(lines, self.dialect.skipped, None)
        if is_quoted:
            yield from self._quoted(lines, start)
            return
        for number, line in enumerate(lines, start):
            if text := line.rstrip("\r\n"):
                cells = split_at_blanks(text, self.dialect.limit) if delimiter == " " else text.split(delimiter)
                yield number, cells

    def _quoted(self, lines: Iterator[str], start: int) -> Iterator[tuple[int, list[str]]]:
        records = csv.reader(
            chain(lines, [END]), delimiter=self.dialect.delimiter, skipinitialspace=self.dialect.is_spaced
        )
        before = start - 1
        try:
            for cells in records:
                if cells and cells[-1].endswith(END):
                    if cells == [END]:
                        return
                    raise csv.Error("the list ends inside quotes")
                if cells:
                    yield start, cells
                start = before + records.line_num + 1
        except csv.Error as error:
            raise UniclError(
                f"{self.path}: line {start}: {error}", "close the quote that is opened in this line"
            ) from error


def _name_columns(first: Sequence[str]) -> tuple[str, ...]:
    """Return the header; of two equal names, the first column keeps it."""
    names: dict[str, None] = {}
    for at, cell in enumerate(first):
        name = cell.strip()
        names[name if name not in names else f"{name} ({at})"] = None
    return tuple(names)
