"""Values inside a record: paths into objects, lists written into cells, and conversations."""

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from unicl_cli.data.pictures import SUFFIXES
from unicl_cli.data.sources.lists.json_values import parse_value
from unicl_cli.data.sources.lists.record import StoredImage
from unicl_cli.data.sources.text_file import describe_length

NOTHING = frozenset(
    (
        *("nan", "-nan", "nat", "none", "null", "(null)", "nil", "\\n", "na", "n/a", "<na>", "#na", "#n/a", "#n/a n/a"),
        *("#null!", "#value!", "#ref!", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    )
)
"""Words, in lower case, that pandas, SQL and spreadsheets write for an empty cell."""
MAX_CELL = 131_072
"""Maximum number of characters of a cell; what a longer one holds is not looked at."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_NUMBERED = re.compile(r"#(enc#)?\d+$")
_ANSWERING = frozenset(("gpt", "assistant", "model", "bot", "chatgpt"))
"""Speakers whose turns of a conversation are texts about the image."""
_TURNS = (("from", "value"), ("role", "content"))
"""Keys of speaker and text in a turn: LLaVA's, and those of chat templates."""
_NOT_LITERAL = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)
"""All that `ast.literal_eval` raises for other texts; TypeError for a list as a key: ``{[]: 1}``, ``{{}}``."""
_OPEN = {"[": "]", "(": ")", "{": "}"}


class CellError(ValueError):
    """A cell that does not fit its role: ``fault`` says why, ``hint`` how to fix it (empty: no particular way)."""

    def __init__(self, fault: str, hint: str = "") -> None:
        super().__init__(fault)
        self.fault, self.hint = fault, hint


def is_url(cell: str) -> bool:
    """Return whether a cell is an address such as ``https://…``."""
    return cell.startswith("data:") or ("://" in cell and _URL.match(cell) is not None)


def is_web_url(cell: str) -> bool:
    """Return whether a cell is an address that can be downloaded."""
    return cell[:8].lower().startswith(("http://", "https://"))


def plain_url(url: str) -> str:
    """Return a URL as all spellings of it agree: scheme and host in lower case, no default port, no fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return url
    host = (parts.hostname or "") + (f":{port}" if port and port != {"http": 80, "https": 443}[parts.scheme] else "")
    return urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))


def key_of_url(url: str) -> str:
    """Return the key of a row whose image is at ``url``: 16 hexadecimal digits of the SHA-1 of `plain_url`."""
    return hashlib.sha1(plain_url(url).encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()[:16]


def looks_like_image(cell: object) -> bool:
    """Return whether a cell is a URL, or ends as image files do; Flickr8k's ``1.jpg#0`` does."""
    if not isinstance(cell, str):
        return isinstance(cell, StoredImage)
    text = strip_number(cell.strip())
    return text.rpartition(".")[2].lower() in SUFFIXES or is_url(text)


def strip_number(cell: str) -> str:
    """Return an image's path without the number of its caption: ``1.jpg`` for ``1.jpg#0``."""
    path = _NUMBERED.sub("", cell) if "#" in cell else cell
    return path if path.rpartition(".")[2].lower() in SUFFIXES else cell


def column_of(name: str, columns: Collection[str]) -> str | None:
    """Return the column that a name means: itself, or the one that its path ``column.key.key`` begins with."""
    while name not in columns:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


def look_up(cells: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column or path; a path into a list gives the list of what its objects hold."""
    column = column_of(name, cells)
    if column is None:
        return None
    value = cells[column]
    for step in name[len(column) + 1 :].split(".") if name != column else ():
        value = _step(_opened(value), step)
    return value


def look_up_cell(cells: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column or path. CellError for a cell that is longer than any text, before it is parsed."""
    cell = cells[name] if name in cells else cells.get(column_of(name, cells) or name)
    if isinstance(cell, str) and len(cell) > MAX_CELL:
        raise CellError(describe_length(name, len(cell), MAX_CELL))
    return look_up(cells, name)


def keys_of(value: Any) -> list[str]:
    """Return the keys of an object, or those of the first object in a list."""
    value = _opened(value)
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, dict)), None)
    return list(value) if isinstance(value, dict) else []


def text_of(value: Any) -> str:
    """Return a plain value as text; nothing for None and NaN."""
    return "" if value is None or value != value else str(value)


def is_plain(value: Any) -> bool:
    """Return whether a value is a text, a number, a truth value or nothing."""
    return not isinstance(value, dict | list | tuple | bytes)


def texts_of(value: Any, name: str) -> list[str]:
    """Return the texts of a cell, of a list or of the answers in a conversation. CellError if it holds others."""
    if isinstance(value, str):
        if value.lstrip()[:1] not in _OPEN:
            return [value] if value.strip() else []
        found = parse_list(value)
        value = found if found is not None and all(isinstance(item, str) for item in found) else _opened_objects(value)
    values = _flatten(value) if isinstance(value, list) else [value]
    if answers := answers_of(values):
        values = [item for answer in answers for item in _contents(answer)]
    if not all(map(is_plain, values)):
        raise odd_cell_error(value, name, "caption")
    return [text for item in values if (text := text_of(item)).strip()]


def answers_of(values: list[Any]) -> list[dict[str, Any]]:
    """Return the turns of a conversation that answer; nothing if the values are not one."""
    if not values or not all(_is_turn(item) for item in values):
        return []
    return [turn for turn in values if str(turn.get("from", turn.get("role"))).lower() in _ANSWERING]


def parse_list(cell: str) -> list[Any] | None:
    """Return the plain items of a list in a cell, as JSON, Python or NumPy write it; None for any other text."""
    text = cell.strip()
    if text[:1] not in ("[", "(") or not text.endswith(_OPEN.get(text[:1], "\n")):
        return None
    found = _parse_strings(text)
    if found is None:
        found = _opened(text) if text[0] == "[" else None
    if isinstance(found, list) and all(map(is_plain, items := _flatten(found))):
        return [item for item in items if item is not None]
    return None


def _flatten(values: list[Any]) -> list[Any]:
    return [item for value in values for item in (_flatten(value) if isinstance(value, list) else [value])]


def odd_cell_error(value: Any, name: str, role: str) -> CellError:
    """Return the error for a value that is neither text nor a list of texts; its own content is not repeated."""
    if isinstance(value, bytes | StoredImage):
        return CellError(f"{name} holds bytes, not text", f"choose a column of text: ?{role}=COLUMN")
    if keys := keys_of(value):
        kind = "an object" if isinstance(value, dict) else "a list of objects"
        shown = ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "")
        inner = next((key for key in ("caption", "raw", "text", "value", "path") if key in keys), keys[0])
        return CellError(f"{name} holds {kind} (keys: {shown})", f"name the text inside: ?{role}={name}.{inner}")
    return CellError(f"{name} is not text")


def _step(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if not isinstance(value, list):
        return None
    if step.isdecimal():
        return value[int(step)] if int(step) < len(value) else None
    found: list[Any] = []
    for item in answers_of(value) or value:
        inner = _step(item, step)
        found += inner if isinstance(inner, list) else [inner]
    return found


def _opened(value: Any) -> Any:
    """Return the object or list that a text cell spells in JSON or Python; other values as they are."""
    if not isinstance(value, str) or len(value) > MAX_CELL or value.strip()[:1] not in ("[", "{"):
        return value
    found = _parse_json(value)
    if found is not None:
        return found
    try:
        found = ast.literal_eval(value.strip())
    except _NOT_LITERAL:
        return value
    return found if isinstance(found, dict | list) else value


def _opened_objects(value: Any) -> Any:
    """Return the objects that a text cell spells; other values as they are."""
    return _opened(value) if keys_of(value) else value


def _parse_json(text: str) -> Any:
    try:
        return parse_value(text)
    except ValueError:
        return None


def _parse_strings(text: str) -> list[Any] | None:
    """Return the strings of a flat list; JSON first. NumPy writes no commas, which Python would read as one text."""
    found: list[Any] | None = _parse_json(text)
    if isinstance(found, list):
        return found
    found = []
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))[1:]
        for token in tokens:
            if token.type == tokenize.STRING:
                found.append(ast.literal_eval(token.string))
            elif token.string in ("]", ")"):
                break
            elif token.string.strip() not in ("", ",", "None", "nan"):
                return None
    except (*_NOT_LITERAL, tokenize.TokenError):
        return None
    return found if found and all(type(item) is str for item in found) else None


def _is_turn(item: Any) -> bool:
    return isinstance(item, dict) and any(set(keys) <= item.keys() for keys in _TURNS)


def _contents(turn: dict[str, Any]) -> list[Any]:
    """Return the texts of a turn: one, or those among its parts (``{"type": "text", "text": …}``)."""
    content = turn.get("value", turn.get("content"))
    if not isinstance(content, list):
        return [content]
    return [part.get("text") if isinstance(part, dict) else part for part in content]
