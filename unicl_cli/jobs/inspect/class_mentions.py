"""Class names in captions, found as whole words: any name of a class, also in the plural (-s, -es, -ies)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unicl_cli.contracts import ClassName

Ints = NDArray[np.int64]
compute: Any = pc
"""pyarrow's functions are made at run time, so type checkers do not see them."""
_BETWEEN = r"[^\p{L}\p{M}\p{N}]+"


class Words(NamedTuple):
    """The words of many texts in a row: ``words`` are their spellings, ``text`` the number of each one's text."""

    words: Any
    text: Ints


def split_words(texts: Any) -> Words:
    """Split a string array into lower-case runs of letters, marks and digits."""
    plain = compute.replace_substring_regex(compute.utf8_lower(texts), pattern=_BETWEEN, replacement=" ")
    split = compute.utf8_split_whitespace(compute.utf8_trim_whitespace(plain))
    kept = split.filter(compute.not_equal(plain, " "))  # white space alone splits into empty words
    number = np.flatnonzero(compute.not_equal(plain, " ").to_numpy(zero_copy_only=False))
    words, text = compute.list_flatten(kept), number[compute.list_parent_indices(kept).to_numpy()]
    full = compute.not_equal(words, "").to_numpy(zero_copy_only=False)
    return Words(words.filter(pa.array(full)), text[full])


def plurals(word: str) -> tuple[str, ...]:
    """Return the word and its possible plurals."""
    ies = (f"{word[:-1]}ies",) if word.endswith("y") else ()
    return (word, f"{word}s", f"{word}es", *ies)


class ClassNameFinder:
    """A trie over the words of all class names, walked over all words of many texts at once."""

    def __init__(self, classes: Sequence[ClassName]) -> None:
        self.count = len(classes)
        spelled = [(number, name) for number, item in enumerate(classes) for name in item.names]
        edges: dict[tuple[int, str], int] = {}
        ends: dict[int, set[int]] = {}
        for (number, _), words in zip(spelled, _split_names([name for _, name in spelled]), strict=True):
            for last in plurals(words[-1]) if words else ():
                state = 0
                for word in (*words[:-1], last):
                    state = edges.setdefault((state, word), len(edges) + 1)
                ends.setdefault(state, set()).add(number)
        self._set_tables(edges, ends)

    def _set_tables(self, edges: dict[tuple[int, str], int], ends: dict[int, set[int]]) -> None:
        spelling = {word: n for n, word in enumerate(dict.fromkeys(word for _, word in edges))}
        self.vocabulary = pa.array(list(spelling), pa.string())
        self.size = max(1, len(spelling))
        keys = np.array([state * self.size + spelling[word] for state, word in edges], np.int64)
        order = np.argsort(keys)
        self.keys, self.states = keys[order], np.array(list(edges.values()), np.int64)[order]
        met = [sorted(ends.get(state, ())) for state in range(len(edges) + 1)]
        self.firsts = np.cumsum([0, *(len(found) for found in met)])  # classes of state s: firsts[s] … firsts[s + 1]
        self.classes = np.array([number for found in met for number in found], np.int64)

    def find(self, words: Words) -> tuple[Ints, Ints]:
        """Return (text, class) of every mention; a text may name several classes, and one class repeatedly."""
        if not len(self.keys):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        ids = compute.fill_null(compute.index_in(words.words, value_set=self.vocabulary), -1).to_numpy()
        ids = ids.astype(np.int64)
        at = np.flatnonzero(ids >= 0)
        state, depth = np.zeros(len(at), np.int64), 0
        texts: list[Ints] = []
        classes: list[Ints] = []
        while at.size:
            at, state = self._advance(ids, words.text, at, state, depth)
            depth += 1
            text, named = self._classes_ending_here(words.text[at], state)
            texts.append(text)
            classes.append(named)
        return np.concatenate([*texts, np.empty(0, np.int64)]), np.concatenate([*classes, np.empty(0, np.int64)])

    def _advance(self, ids: Ints, text: Ints, at: Ints, state: Ints, depth: int) -> tuple[Ints, Ints]:
        """Go one word further from each start, and drop the starts where no name continues."""
        inside = at + depth < len(ids)
        at, state = at[inside], state[inside]
        here = at + depth
        same = (text[here] == text[at]) & (ids[here] >= 0)
        at, state, here = at[same], state[same], here[same]
        edges = state * self.size + ids[here]
        place = np.minimum(np.searchsorted(self.keys, edges), len(self.keys) - 1)
        known = self.keys[place] == edges
        return at[known], self.states[place[known]]

    def _classes_ending_here(self, text: Ints, state: Ints) -> tuple[Ints, Ints]:
        counts = self.firsts[state + 1] - self.firsts[state]
        begins = np.repeat(self.firsts[state] - np.cumsum(counts) + counts, counts)
        return np.repeat(text, counts), self.classes[begins + np.arange(counts.sum())]


def _split_names(names: Sequence[str]) -> list[list[str]]:
    if not names:
        return []
    found = split_words(pa.array([normalize("NFC", name) for name in names], pa.string()))
    split: list[list[str]] = [[] for _ in names]
    for word, text in zip(found.words.to_pylist(), found.text.tolist(), strict=True):
        split[text].append(word)
    return split


def distinct_pairs(first: Ints, second: Ints, size: int) -> tuple[Ints, Ints]:
    """Return the distinct pairs, sorted; ``second`` lies in [0, size)."""
    if not len(first):
        return first, second
    pairs = np.sort(first * size + second)  # half the time of np.unique, which hashes
    pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    return pairs // size, pairs % size
