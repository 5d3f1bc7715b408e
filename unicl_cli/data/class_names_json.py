"""Class names in JSON: lists, maps between ids and names, and the tables of other tools."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from unicl_cli.data.class_entry import FORMS, ID, ID_WORDS, NAME_WORDS, ClassEntry, as_id, find_repeated
from unicl_cli.errors import UniclError
from unicl_cli.storage.json_text import parse_json

_WRAPPERS = ("id2label", "label2id", "class_to_idx", "categories", "names", "classes", "labels")
"""Keys of JSON objects (transformers, COCO, YOLO) whose value is the list of names."""


def load_json(text: str, origin: str) -> Any:
    """Return the value of a JSON text, or the list of those of its lines. UniclError for a repeated key."""

    def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (repeated := find_repeated(key for key, _ in pairs)) is not None:
            raise UniclError(f"{origin}: duplicate key '{repeated}'", "give each class one line")
        return dict(pairs)

    try:
        return parse_json(text, refuse_repeated_keys)
    except ValueError as error:
        try:
            return [parse_json(line, refuse_repeated_keys) for line in text.splitlines() if line.strip()]  # JSONL
        except ValueError:
            raise UniclError(f"{origin}: not valid JSON: {error}", FORMS) from error


def entries_of_json(document: Any, origin: str, *, prompts: bool) -> Iterator[ClassEntry]:
    """Yield the classes of a list or a map of class names; ``prompts`` as `parse_class_text`."""
    document = _unwrap(document)
    if isinstance(document, list):
        for item in cast(list[Any], document):
            yield _entry_of_item(item, origin)
        return
    if not isinstance(document, dict):
        raise UniclError(f"{origin}: neither a list nor a map of class names", FORMS)
    pairs = cast(dict[str, Any], document)
    if pairs and all(type(value) is int for value in pairs.values()) and min(pairs.values()) in (0, 1):
        pairs = _turn(pairs, origin)
    own = prompts and not all(ID.fullmatch(key) for key in pairs)
    for key, value in pairs.items():
        texts = _texts_of(key, value, origin)
        if own:
            yield ClassEntry((key.strip(),), prompts=tuple(texts))
            continue
        names = tuple(texts[1:] if re.fullmatch(r"n\d{8}", texts[0]) else texts)  # {"0": ["n01440764", "tench"]}
        yield ClassEntry(names or tuple(texts), as_id(key), written=texts[0])


def _unwrap(document: Any) -> Any:
    """Return the value of `id2label`, `categories`, … in an object that has other keys beside it, or that key alone."""
    if isinstance(document, dict):
        held = cast(dict[str, Any], document)
        return next((held[word] for word in _WRAPPERS if isinstance(held.get(word), dict) or _lists(held, word)), held)
    return document


def _lists(held: Mapping[str, Any], word: str) -> bool:
    """Return whether the key holds a list that cannot be the prompts of a class with this name."""
    value = held.get(word)
    return isinstance(value, list) and bool(value) and (len(held) == 1 or isinstance(value[0], dict))


def _turn(pairs: Mapping[str, int], origin: str) -> dict[str, str]:
    """Turn name -> number into number -> name."""
    if len(set(pairs.values())) < len(pairs):
        raise UniclError(f"{origin}: two names have one number", "give each class its own number")
    return {str(number): name for name, number in pairs.items()}


def _entry_of_item(item: Any, origin: str) -> ClassEntry:
    if isinstance(item, str) and item.strip():
        return ClassEntry((item.strip(),), written=item.strip())
    if isinstance(item, dict):
        held = {str(key).casefold(): value for key, value in cast(dict[Any, Any], item).items()}
        name = next((held[word] for word in NAME_WORDS if isinstance(held.get(word), str)), None)
        key = next((held[word] for word in ID_WORDS if isinstance(held.get(word), int | float | str)), None)
        if name and name.strip():
            return ClassEntry((name.strip(),), None if key is None else str(key), written=name)
    raise UniclError(f"{origin}: {json.dumps(item)[:40]} is not a class name", FORMS)


def _texts_of(key: str, value: Any, origin: str) -> list[str]:
    texts: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    if not key.strip() or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UniclError(f"{origin}: class {key!r} needs a name, and names or prompts that are text", FORMS)
    return list(dict.fromkeys(text.strip() for text in texts))
