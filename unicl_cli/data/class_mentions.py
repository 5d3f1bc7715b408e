"""Class names in captions, found as whole words: any name of a class, also in the plural (-s, -es, -ies)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from unicodedata import category, normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unicl_cli.contracts import ClassName

Ints = NDArray[np.int64]
compute: Any = pc
"""pyarrow's functions are made at run time, so type checkers do not see them."""


class _Separators(dict[int, str]):
    """The table of `str.translate` that puts a space in place of all but letters, marks and digits."""

    def __missing__(self, code: int) -> str:
        self[code] = chr(code) if category(chr(code))[0] in "LMN" else " "
        return self[code]


_SEPARATORS = _Separators()


class Words(NamedTuple):
    """The words of many texts in a row: ``words`` are their spellings, ``text`` the number of each one's text."""

    words: Any
    text: Ints


def split_text(text: str) -> list[str]:
    """Split a text into lower-case runs of letters, marks and digits."""
    return text.lower().translate(_SEPARATORS).split()


def split_words(texts: Any) -> Words:
    """Split each text of a string array as ``split_text`` does."""
    split = [split_text(text) for text in texts.to_pylist()]
    number = np.repeat(np.arange(len(split)), [len(words) for words in split])
    return Words(pa.array([word for words in split for word in words], pa.string()), number)


def plurals(word: str) -> tuple[str, ...]:
    """Return the word and its possible plurals."""
    ies = (f"{word[:-1]}ies",) if word.endswith("y") else ()
    return (word, f"{word}s", f"{word}es", *ies)


class _Node(NamedTuple):
    """The words that may follow the first words of a class name, and the classes that end with these."""

    following: dict[str, _Node]
    classes: set[int]


class ClassNameFinder:
    """A trie over the words of all class names."""

    def __init__(self, classes: Sequence[ClassName]) -> None:
        self.count, self._root = len(classes), _Node({}, set())
        for number, item in enumerate(classes):
            for words in (split_text(normalize("NFC", name)) for name in item.names):
                for last in plurals(words[-1]) if words else ():
                    node = self._root
                    for word in (*words[:-1], last):
                        node = node.following.setdefault(word, _Node({}, set()))
                    node.classes.add(number)

    def find(self, words: Words) -> tuple[Ints, Ints]:
        """Return (text, class) of every mention; a text may name several classes, and one class repeatedly."""
        each, ends = words.words.to_pylist(), np.flatnonzero(np.diff(words.text, append=-1)) + 1
        found = [
            (int(words.text[start]), number)
            for start, end in pairwise([0, *ends.tolist()])
            for number in self.named_by(each[start:end])
        ]
        text, named = np.array(found, np.int64).reshape(-1, 2).T
        return text, named

    def named_by(self, words: Sequence[str]) -> list[int]:
        """Return the class of every mention among the words of one text."""
        found: list[int] = []
        first = self._root.following
        for start in [place for place, word in enumerate(words) if word in first]:
            node, at = first[words[start]], start + 1
            found += node.classes
            while at < len(words) and (after := node.following.get(words[at])) is not None:
                node, at = after, at + 1
                found += node.classes
        return found


def distinct_pairs(first: Ints, second: Ints, size: int) -> tuple[Ints, Ints]:
    """Return the distinct pairs, sorted; ``second`` lies in [0, size)."""
    if not len(first):
        return first, second
    pairs = np.sort(first * size + second)  # half the time of np.unique, which hashes
    pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    return pairs // size, pairs % size
