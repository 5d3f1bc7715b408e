"""The separator of a text list: named by an option or by the list, else found in its first lines."""

import csv
import re
from collections.abc import Sequence
from typing import NamedTuple

from unicl_cli.data.sources.lists.cells import looks_like_image
from unicl_cli.data.sources.lists.column_names import is_usual
from unicl_cli.errors import UniclError

NAMES = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|"}
"""Words for separators that a shell would swallow."""
_EXCEL = re.compile(r"sep=(.)\s*$", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_UNQUOTED = frozenset(("\t", " "))
_EMPTY = ' \t\r\n,;|"'
"""Characters of a line without a filled cell."""
_EVIDENCE, _WIDTH = 64, 65_536
"""Lines that the separator is chosen by, and their first characters."""


class Dialect(NamedTuple):
    """The form of a text list.

    ``limit`` is the most cells of a line whose last one holds blanks (0: any number); ``skipped`` lines come first.
    With ``is_spaced``, a blank follows each separator, also before a quote.
    """

    delimiter: str
    is_quoted: bool
    skipped: int = 0
    limit: int = 0
    is_spaced: bool = False


def choose_dialect(lines: Sequence[str], suffix: str, sep: str | None, src: str) -> Dialect:
    """Return the form that the option ``sep``, Excel's line ``sep=;``, the suffix or the lines' cells say."""
    comments = next((at for at, line in enumerate(lines) if not line.startswith("#")), 0)
    excel = _EXCEL.match(lines[comments]) if lines else None
    skipped = comments + int(excel is not None or _is_count(lines[comments : comments + 2]))
    rows = [line.rstrip("\r\n")[:_WIDTH] for line in lines[skipped:] if line.strip(_EMPTY)][:_EVIDENCE]
    if sep is not None:
        delimiter = _named(sep, src)
    elif excel:
        delimiter = excel[1]
    elif suffix == ".tsv" and any("\t" in row for row in rows):
        delimiter = "\t"
    else:
        delimiter = _find_delimiter(rows, may_be_blanks=suffix not in (".csv", ".tsv"))
    is_quoted = delimiter not in _UNQUOTED or (delimiter == "\t" and suffix == ".csv")
    is_spaced = delimiter in ",;" and bool(rows) and rows[0].count(delimiter) == rows[0].count(f"{delimiter} ")
    return Dialect(delimiter, is_quoted, skipped, _count_leading(rows) if delimiter == " " else 0, is_spaced)


def split_rows(rows: Sequence[str], dialect: Dialect) -> list[list[str]]:
    """Return the cells of whole lines; quotes that go over several lines are not joined."""
    if dialect.delimiter == " ":
        return [split_at_blanks(row, dialect.limit) for row in rows]
    if not dialect.is_quoted:
        return [row.split(dialect.delimiter) for row in rows]
    try:
        return list(csv.reader(rows, delimiter=dialect.delimiter, skipinitialspace=dialect.is_spaced))
    except csv.Error:
        return [row.split(dialect.delimiter) for row in rows]


def split_at_blanks(row: str, limit: int) -> list[str]:
    """Return the cells between blanks; the last of ``limit`` cells keeps its own."""
    return row.split(None, limit - 1 if limit else -1)


def _named(sep: str, src: str) -> str:
    delimiter = NAMES.get(sep.lower(), sep)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UniclError(f"{src}: sep={sep} is not a separator", f"give one character, or one of: {', '.join(NAMES)}")
    return delimiter


def _find_delimiter(rows: Sequence[str], *, may_be_blanks: bool) -> str:
    """Return the separator that gives the lines an image and the same number of cells; a comma if none does."""
    candidates = [",", "\t", ";", "|", *([" "] if may_be_blanks else [])]
    scores = {delimiter: _score(rows, delimiter) for delimiter in candidates}
    best = max(candidates, key=lambda delimiter: scores[delimiter])
    return best if any(scores[best]) else ","


def _score(rows: Sequence[str], delimiter: str) -> tuple[float, ...]:
    """Return the share of lines with an image, 1 for a usual header, and the share with as many cells as the first.

    All are zero for a single column.
    """
    dialect = Dialect(delimiter, delimiter not in _UNQUOTED, 0, _count_leading(rows) if delimiter == " " else 0)
    if delimiter == " " and dialect.limit == 1:
        return 0, 0, 0
    cells = split_rows(rows, dialect)
    if not cells or len(cells[0]) < 2:
        return 0, 0, 0
    body = cells[1:] or cells
    images = sum(any(map(looks_like_image, row)) for row in body)
    even = sum(len(row) == len(cells[0]) for row in body)
    return images / len(body), int(any(map(is_usual, cells[0]))), even / len(body)


def _count_leading(rows: Sequence[str]) -> int:
    """Return the number of cells between blanks if one text comes last: the columns of images and numbers, and one.

    Zero if all lines have equally many cells that are not text; one if blanks do not separate anything.
    """
    cells = [row.split() for row in rows]
    body = cells[1:] if len(cells) > 1 and not (looks_like_image(cells[0][0]) or cells[0][0].isdecimal()) else cells
    shortest = min(map(len, body), default=0)
    leading = 0
    while leading < shortest and all(looks_like_image(row[leading]) or _NUMBER.fullmatch(row[leading]) for row in body):
        leading += 1
    same = {len(row) for row in body} == {shortest}
    if leading == 0:
        return 0 if same and not any(looks_like_image(row[-1]) for row in body if row) else 1
    return 0 if same and leading >= shortest - 1 else leading + 1


def _is_count(lines: Sequence[str]) -> bool:
    """Return whether the first line is the number of the others, as in CelebA: alone, above a line of several cells."""
    return len(lines) > 1 and lines[0].strip().isdecimal() and len(lines[1].split()) > 1
