"""Class names from a file or an option: lines, numbered lines, JSON, YOLO's YAML, or a table of ids and names."""

import csv
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

from unicl_cli.data.class_entry import FORMS, ID, ID_WORDS, NAME_WORDS, ClassEntry, NameList, as_id, find_repeated
from unicl_cli.data.class_names_json import entries_of_json, load_json
from unicl_cli.data.class_names_yaml import load_names
from unicl_cli.data.number_spellings import read_whole_numbers
from unicl_cli.data.text import replace_surrogates
from unicl_cli.errors import Remark, UniclError
from unicl_cli.storage.files import read_regular

_LONE_HEADERS = frozenset(("name", "names", "class", "classes", "class_name", "classname", "label", "labels"))
"""Headers of a file with one column; `key` and `folder` may be classes."""
MAX_BYTES = 64_000_000
MAX_LINES = 200_000
"""The size of a file of class names; prompts for 20,000 classes have less."""
MAX_NAME = 1000
"""Maximum number of characters of a class name."""
_NUMBERED = re.compile(r"(\d{1,18}|n\d{8})(\s*[\t:.,;)|=\]-]\s*|\s+)(\S.*)")
_SYNTAX = re.compile(r"""[\[\]{}<#]|['"]|-\s|---$|\.\.\.$|.*[\[{,:;]$""")
"""Beginnings and ends of lines in JSON, YAML, XML, Python and comments."""


class _Cells(NamedTuple):
    """One record of a text; ``place`` names it in messages."""

    place: str
    cells: list[str]


def read_class_file(path: str, origin: str | None = None, *, prompts: bool = False) -> NameList:
    """Read a file of class names in any form; messages call it ``origin``. UniclError if it is doubtful or unreadable.

    For ``prompts``, see ``parse_class_text``.
    """
    file, origin = Path(path).expanduser(), origin or path
    try:
        text = read_regular(file, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UniclError(f"{origin}: no such file of class names", FORMS) from error
    except (OSError, ValueError) as error:  # a byte that is not UTF-8, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UniclError(f"{origin}: cannot be read: {reason}", "save class names as UTF-8 text") from error
    return parse_class_text(text, origin, file.suffix.lower(), prompts=prompts)


def parse_class_text(text: str, origin: str, suffix: str = ".txt", *, prompts: bool = False) -> NameList:
    """Return the classes in a file's text, found by its content.

    A map gives ids their names (`name|alias`), in either order. With ``prompts``, what follows a key that is neither a
    number nor a WordNet id is that class's prompts, and blank lines and repetitions are allowed.
    """
    notes: list[str] = []
    if text.count("\n") > MAX_LINES:
        raise UniclError(f"{origin}: more than {MAX_LINES:,} lines", "check that this is the file of class names")
    if text.lstrip().startswith(("{", "[")):
        entries = list(entries_of_json(load_json(text, origin), origin, prompts=prompts))
    elif suffix in (".yaml", ".yml"):
        entries = list(entries_of_json(load_names(text, origin), origin, prompts=prompts))
    else:
        entries = _entries_of_text(text, origin, suffix, notes, prompts=prompts)
    if not entries:
        raise UniclError(f"{origin}: no class names", FORMS)
    if long := next((name for entry in entries for name in entry.names if len(name) > MAX_NAME), None):
        raise UniclError(f"{origin}: '{long[:40]}…' has {len(long):,} characters; at most {MAX_NAME:,}", FORMS)
    entries = _read_whole_ids(entries)
    _check_ids(entries, origin)
    if not prompts:
        _check_repeated_names(entries, origin)
    return NameList(origin, tuple(entries), tuple(type(note)(f"{origin}: {note}") for note in notes))


def read_classes(spec: str, option: str = "--classes") -> NameList:
    """Return the classes of an option: ``@file``, or as ``parse_class_option``; messages name the ``option``."""
    origin = f"{option} {spec if len(spec) < 60 else spec[:57] + '…'}"
    return read_class_file(spec[1:], origin, prompts=True) if spec.startswith("@") else parse_class_option(spec, origin)


def parse_class_option(spec: str, origin: str) -> NameList:
    """Return the classes of an option: JSON, or cells of CSV lines, `a,b,"c, d"`; `name=alias|alias` has aliases."""
    if spec.lstrip().startswith(("{", "[")):
        return parse_class_text(spec, origin, prompts=True)
    if spec.count('"') % 2:  # the reader would take the rest for one name
        raise UniclError(f"{origin}: a quote is not closed", 'write a,b,"c, d"')
    if spec != replace_surrogates(spec):
        raise UniclError(
            f"{replace_surrogates(origin)}: not UTF-8 text", "write class names in UTF-8, or in a file: @names.txt"
        )
    rows = csv.reader(spec.splitlines(), skipinitialspace=True)
    cells = [cell.strip() for row in rows for cell in row if cell.strip()]
    if not cells:
        raise UniclError(f"{origin}: names no class", "write --classes 'cat,dog', or --classes @names.txt")
    if '"' not in spec:  # quotes take a name literally
        _check_cells(cells, origin)
        if found := _split_numbers(cells, origin, spaces=False):
            return NameList(
                origin, tuple(ClassEntry((name,), number, (), cells[at]) for at, (number, name) in enumerate(found))
            )
    return NameList(origin, tuple(_entry_of_cell(cell, "", origin, quoted=True) for cell in cells))


def _check_cells(cells: list[str], origin: str) -> None:
    if len(cells) == 1 and (Path(cells[0]).is_file() or re.fullmatch(r"\S+\.(txt|json|csv|tsv)", cells[0])):
        raise UniclError(f"{origin}: a file, not a class name", f"write @{cells[0]} to read class names from a file")
    if odd := next((cell for cell in cells if re.search(r"[;|]", cell.partition("=")[0])), None):
        raise UniclError(f"{origin}: '{odd}' has separators in its name", "separate classes by commas: cat,dog")


def _entries_of_text(text: str, origin: str, suffix: str, notes: list[str], *, prompts: bool) -> list[ClassEntry]:
    lines = [_Cells(f"line {at}", [line.strip()]) for at, line in enumerate(text.strip().split("\n"), 1)]
    comments = [line.place for line in lines if re.match(r"#(\s|$)", line.cells[0])]
    if comments:
        notes.append(Remark(f"lines that begin with # are comments ({len(comments)}, first {comments[0]})"))
    blank = next((line.place for line in lines if not line.cells[0]), None)
    lines = [line for line in lines if line.cells[0] and not re.match(r"#(\s|$)", line.cells[0])]
    rows = _split_columns(lines, suffix, origin)
    if empty := [row.place for row in rows if not any(row.cells)]:
        blank, rows = blank or empty[0], [row for row in rows if any(row.cells)]
        notes.append(f"lines without a filled cell are left out ({len(empty)}, first {empty[0]})")
    wide = any(len(row.cells) > 1 for row in rows)
    if wide and prompts and suffix != ".csv" and not _is_map(rows):
        return [_entry_with_prompt(row, origin) for row in rows]
    if _has_header(rows):
        notes.append(Remark(f"{rows[0].place} is the header: {', '.join(rows[0].cells)}"))
        header, rows = rows[0].cells, rows[1:]
    else:
        header = None
    if wide:
        return _entries_of_table(header, rows, origin)
    cells = [row.cells[0] for row in rows]
    if numbered := _numbered_entries(cells, origin, notes):
        return numbered
    if blank and rows and not prompts:
        raise UniclError(f"{origin}: {blank} is blank, but the names are counted by line", "remove the line")
    return [_entry_of_cell(row.cells[0], row.place, origin) for row in rows]


def _numbered_entries(cells: Sequence[str], origin: str, notes: list[str]) -> list[ClassEntry]:
    """Return the classes of lines that all begin, or all end, with ids that count them; nothing for other lines."""
    for side, numbered in (("begin", _split_numbers(cells, origin, spaces=True)), ("end", _split_last_numbers(cells))):
        if numbered:
            notes.append(Remark(f"its lines {side} with ids, from {numbered[0][0]} to {numbered[-1][0]}"))
            return [_entry_of_id(number, name, cell) for (number, name), cell in zip(numbered, cells, strict=True)]
    return []


def _split_columns(lines: list[_Cells], suffix: str, origin: str) -> list[_Cells]:
    """Split lines at tabs, or as CSV if the file is named so."""
    if suffix != ".csv":
        return [_Cells(place, [cell.strip() for cell in cells[0].split("\t")]) for place, cells in lines]
    first = lines[0].cells[0] if lines else ""
    delimiter = max(",;\t|", key=first.count)
    try:
        parsed = list(csv.reader([line.cells[0] for line in lines], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UniclError(f"{origin}: {error}", "close every quote in its line") from error
    if len(parsed) != len(lines):
        raise UniclError(f"{origin}: a quoted cell goes over several lines", "write each class on one line")
    return [_Cells(line.place, [c.strip() for c in cells]) for line, cells in zip(lines, parsed, strict=True)]


def _has_header(rows: list[_Cells]) -> bool:
    """Return whether the first row names the columns: by its words, or as the only one without an id."""
    if len(rows) < 2:
        return False
    words = [_as_word(cell) for cell in rows[0].cells]
    if len(words) == 1:
        return words[0] in _LONE_HEADERS
    ids = [all(_is_id(row, at) for row in rows[1:]) for at in range(len(words))]
    known = all(word in (*ID_WORDS, *NAME_WORDS) for word in words)
    return (known or any(ids)) and not any(ID.fullmatch(word) for word in words)


def _as_word(cell: str) -> str:
    return cell.casefold().replace(" ", "_")


def _is_id(row: _Cells, at: int) -> bool:
    return at < len(row.cells) and ID.fullmatch(row.cells[at]) is not None


def _is_map(rows: list[_Cells]) -> bool:
    """Return whether every row is an id and a name."""
    body = rows[1:] if _has_header(rows) else rows
    return all(len(row.cells) == 2 for row in rows) and any(all(_is_id(row, at) for row in body) for at in (0, 1))


def _entries_of_table(header: list[str] | None, rows: list[_Cells], origin: str) -> list[ClassEntry]:
    width = len(header or rows[0].cells)
    if odd := next((row for row in rows if len(row.cells) != width), None):
        raise UniclError(
            f"{origin}: {odd.place}: {width} cells expected, {len(odd.cells)} found", "quote names that hold a comma"
        )
    id_at, name_at = _choose_columns(header, rows, width, origin)
    entries: list[ClassEntry] = []
    for place, cells in rows:
        if not cells[id_at] or not cells[name_at]:
            raise UniclError(f"{origin}: {place}: an empty cell", "give each class an id and a name")
        _check_name(cells[name_at], place, origin)
        entries.append(_entry_of_id(cells[id_at], cells[name_at]))
    return entries


def _choose_columns(header: list[str] | None, rows: list[_Cells], width: int, origin: str) -> tuple[int, int]:
    """Return the columns of ids and of names, by the header, else by the cells."""
    if header is None and width == 2:
        turned = all(_is_id(row, 1) for row in rows) and not all(_is_id(row, 0) for row in rows)
        return (1, 0) if turned else (0, 1)
    words = [_as_word(cell) for cell in header or []]
    name_at = next((words.index(word) for word in NAME_WORDS if word in words), None)
    rest = (*ID_WORDS, "label", "class", "category")
    id_at = next((words.index(word) for word in rest if word in words and words.index(word) != name_at), None)
    if width == 2 and (id_at is None) != (name_at is None):
        id_at, name_at = (id_at, 1 - id_at) if id_at is not None else (1 - cast(int, name_at), name_at)
    if id_at is None or name_at is None:
        raise UniclError(f"{origin}: no columns of ids and names", "write a first line with 'id' and 'name'")
    return id_at, name_at


def _split_numbers(cells: Sequence[str], origin: str, *, spaces: bool) -> list[tuple[str, str]] | None:
    """Return (id, name) pairs if all cells begin with ids that count the classes; None if they are plain names.

    UniclError if only some cells are numbered. ``spaces``: a space may follow the id, not only a sign.
    """
    matches = [_NUMBERED.fullmatch(cell) for cell in cells]
    found = [match for match in matches if match and (spaces or match[2].strip())]
    if len(cells) < 2 or not found:
        return None
    if len(found) < len(cells):
        counting = [at for at, match in enumerate(matches) if match and match[1] in (str(at), str(at + 1))]
        if spaces and len(counting) > 1 and 2 * len(counting) > len(cells):
            plain = next(cell for cell, match in zip(cells, matches, strict=True) if not match)
            raise UniclError(f"{origin}: '{plain}' has no number, but other names have one", FORMS)
        return None
    if all(match[1].startswith("n") for match in found):
        return [(match[1], match[3].replace(", ", "|")) for match in found]  # synonyms, as in words.txt
    if any(match[1].startswith("n") for match in found):
        return None
    numbers = [int(match[1]) for match in found]
    names = {match[3] for match in found}
    rising = all(low < high for low, high in pairwise(numbers))
    counted = rising or sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers)))
    if min(numbers) > 1 or len(names) < len(cells) or not counted:
        return None  # '2 of hearts', '5 euro'
    return [(str(int(match[1])), match[3]) for match in found]


def _split_last_numbers(cells: Sequence[str]) -> list[tuple[str, str]] | None:
    """Return (id, name) pairs if all cells end with ids that count the classes from 0 or 1; None if they do not."""
    matches = [match for cell in cells if (match := re.fullmatch(r"(.*[^\s\d,;:])(?:\s+|\s*[,;:]\s*)(\d{1,9})", cell))]
    if len(cells) < 2 or len(matches) < len(cells):
        return None
    numbers, names = [int(match[2]) for match in matches], {match[1] for match in matches}
    first = min(numbers)
    counted = first <= 1 and sorted(numbers) == list(range(first, first + len(numbers)))
    return [(str(int(match[2])), match[1]) for match in matches] if counted and len(names) == len(cells) else None


def _entry_of_id(key: str, cell: str, written: str = "") -> ClassEntry:
    """Return the class ``key`` whose name is ``cell``; aliases follow a bar."""
    names = tuple(dict.fromkeys(name.strip() for name in re.split(r"[|]", cell) if name.strip()))
    return ClassEntry(names, as_id(key), (), written or cell)


def _entry_of_cell(cell: str, place: str, origin: str, *, quoted: bool = False) -> ClassEntry:
    """Return the class of a plain cell: `name=alias|alias`, or a name in double quotes; ``quoted``: they are gone."""
    if not quoted and re.fullmatch(r'"(?:[^"]|"")+"', cell):
        name = cell[1:-1].replace('""', '"')
        return ClassEntry((name,), written=name)
    if not quoted:
        _check_name(cell, place, origin)
    name, _, rest = (part.strip() for part in cell.partition("="))
    aliases = [alias.strip() for alias in rest.split("|") if alias.strip()]
    if not name:
        raise UniclError(f"{origin}: '{cell}' has no name", "write name=alias|alias")
    for alias in aliases:
        _check_name(alias, place, origin)
    return ClassEntry((name, *aliases), written=cell)


def _entry_with_prompt(row: _Cells, origin: str) -> ClassEntry:
    name, prompt = row.cells[0], " ".join(row.cells[1:]).strip()
    return (
        ClassEntry((name,), prompts=(prompt,)) if name and prompt else _entry_of_cell(name or prompt, row.place, origin)
    )


def _check_name(name: str, place: str, origin: str) -> None:
    if _SYNTAX.match(name):
        where = f"{origin}: {place}" if place else origin
        raise UniclError(f"{where}: '{name}' looks like syntax, not like a class name", FORMS)


def _read_whole_ids(entries: list[ClassEntry]) -> list[ClassEntry]:
    """Write ids as integers if all are whole and some are floats, as pandas writes a column with gaps."""
    whole = read_whole_numbers(entry.id for entry in entries if entry.id is not None)
    return [entry._replace(id=whole.get(entry.id or "", entry.id)) for entry in entries]


def _check_ids(entries: Sequence[ClassEntry], origin: str) -> None:
    ids = [entry.id for entry in entries]
    if any(key is None for key in ids) and any(key is not None for key in ids):
        raise UniclError(f"{origin}: some classes have an id, others have none", "give every class an id, or none")
    if repeated := find_repeated(key for key in ids if key is not None):
        raise UniclError(f"{origin}: two classes have the id {repeated}", "remove one of them")


def _check_repeated_names(entries: Sequence[ClassEntry], origin: str) -> None:
    if entries[0].id is None and (repeated := find_repeated(entry.names[0] for entry in entries)):
        raise UniclError(f"{origin}: duplicate class '{repeated}'", "remove one of them: a class has one number")
