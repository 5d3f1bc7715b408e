"""A class of a list with its names, and the words and ids that readers of such lists share."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

FORMS = 'write a name on each line, "id<TAB>name" lines, or JSON: ["cat", "dog"] or {"0": "cat", "1": "dog"}'
"""The hint of every error in a list of class names."""
ID_WORDS = (
    *("id", "index", "idx", "number", "num", "class_id", "classid", "label_id", "labelid", "category_id"),
    *("class_index", "class_idx", "label_index", "label_idx", "target", "code", "wnid", "synset", "synset_id"),
    *("folder", "directory", "dir", "key", ""),
)
NAME_WORDS = (
    *("name", "class_name", "classname", "label_name", "labelname", "category_name", "display_name", "names", "title"),
    *("description", "words", "species", "label", "class", "category", "classes", "labels"),
)
ID = re.compile(r"\d{1,18}|n\d{8}")


class ClassEntry(NamedTuple):
    """One class of a list: prompts say ``names[0]``; ``id`` stands for it in data; ``written`` is its whole cell."""

    names: tuple[str, ...]
    id: str | None = None
    prompts: tuple[str, ...] = ()
    written: str = ""


class NameList(NamedTuple):
    """The classes of a file or an option, in its order; all of them have an id, or none has."""

    origin: str
    entries: tuple[ClassEntry, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_ids(self) -> bool:
        return bool(self.entries) and self.entries[0].id is not None


def as_id(key: str) -> str:
    """Return a number without its leading zeros, and any other key as it is."""
    return str(int(key)) if key.isdecimal() and ID.fullmatch(key) else key


def find_repeated(values: Iterable[str]) -> str | None:
    return next((value for value, times in Counter(values).items() if times > 1), None)
