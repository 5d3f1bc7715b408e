"""Check of a `tokenizer.json` before the `tokenizers` library runs it: the work on a text stays in proportion to it."""

import base64
import re
from collections.abc import Iterator
from typing import Any, cast

MAX_PARTS, MAX_GROWTH, MAX_PATTERN, MAX_CHARSMAP = 32, 64, 2000, 4_000_000
"""Largest number of steps, factor by which they may lengthen a text, length of a pattern, and of a character table."""
MAX_REPEATS = 4
"""Most quantifiers without an upper limit in one branch of a pattern: its time grows with a power of the length."""
STEPS = {
    "normalizer": (
        *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "BertNormalizer", "Nmt", "Precompiled"),
        *("ByteLevel", "Prepend", "Replace", "Sequence"),
    ),
    "pre_tokenizer": (
        *("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Metaspace", "Split", "Punctuation"),
        *("Digits", "UnicodeScripts", "CharDelimiterSplit", "Sequence"),
    ),
}
TOKEN = re.compile(r"\(|\)(?:[*+]|\{\d)?|\||[*+][?+]?|\{\d*,\}")
"""An opened group, a closed one with its quantifier, a new branch, a quantifier without an upper limit."""
REFERENCE = re.compile(r"\\[1-9gk]|\(\?(?:[P&(]|<[^=!])")
CHARACTERS = re.compile(r"\[\^?\]?[^\]]*\]")
ESCAPE = re.compile(r"\\[pP]\{[^}]*\}|\\.", re.DOTALL)


def check_tokenizer(document: Any) -> None:
    """Raise ValueError for steps of unknown kind, patterns that may take endless time, and texts that grow.

    The library has no limits of its own: thirty replacements of a letter by two make a gigabyte of one letter.
    """
    if not isinstance(document, dict):
        raise ValueError("should be a mapping")
    whole = cast("dict[str, Any]", document)
    steps = [step for place in STEPS for step in list_steps(whole.get(place), place)]
    if len(steps) > MAX_PARTS:
        raise ValueError(f"has {len(steps)} steps; the limit is {MAX_PARTS}")
    growth = 1
    for step in steps:
        if "pattern" in step:
            check_pattern(step["pattern"])
        growth *= growth_of(step)
    if growth > MAX_GROWTH:
        raise ValueError(f"its replacements could make a text {growth:,} times as long; the limit is {MAX_GROWTH}")


def growth_of(step: dict[str, Any]) -> int:
    """Return the factor by which a step may lengthen a text, at most. ValueError for a bad table of characters."""
    if step["type"] == "ByteLevel":
        return 2  # a character for each byte: those beyond ASCII have two bytes, and would double in each such step
    if step["type"] == "Precompiled":
        return longest_replacement(step.get("precompiled_charsmap") or "")
    kept = 1 if "Regex" in (step.get("pattern") or ()) else 0  # a pattern may match nothing, between any two letters
    return max(1, kept + len(step.get("content") or step.get("prepend") or ""))


def longest_replacement(charsmap: str) -> int:
    """Return the length of the longest text that a table of characters may put in the place of one.

    The table is that of SentencePiece: the size of a trie, the trie, and the texts, each ended by NUL, that it points
    to. ValueError if it is not such a table.
    """
    if len(charsmap) > MAX_CHARSMAP:
        raise ValueError("its table of characters is too large")
    table = base64.b64decode(charsmap, validate=True)
    start = 4 + int.from_bytes(table[:4], "little")
    if not 4 < start < len(table):
        raise ValueError("its table of characters is damaged")
    longest = max(re.findall(rb"[^\0]*", table[start:]), key=len)
    return max(1, len(longest.decode("utf-8", "replace")))


def list_steps(step: Any, place: str) -> Iterator[dict[str, Any]]:
    """Yield a step and those inside a Sequence. ValueError for an unknown kind."""
    if step is None:
        return
    known = cast("dict[str, Any]", step) if isinstance(step, dict) else {}
    if known.get("type") not in STEPS[place]:
        raise ValueError(f"{place}: unknown type {known.get('type')!r}")
    for key in ("content", "prepend", "precompiled_charsmap"):
        if not isinstance(known.get(key, ""), str | None):
            raise ValueError(f"{place}: {key} should be a text")
    yield known
    if known["type"] == "Sequence":
        inner = known.get("normalizers" if place == "normalizer" else "pretokenizers")
        for each in inner if isinstance(inner, list) else ():
            yield from list_steps(each, place)


def check_pattern(pattern: Any) -> None:
    """Raise ValueError for a pattern that matches nothing at every place, or that may try exponentially many ways."""
    text = next(iter(pattern.values()), None) if isinstance(pattern, dict) and len(pattern) == 1 else None
    if not isinstance(text, str) or not 0 < len(text) <= MAX_PATTERN:
        raise ValueError(f"a pattern should be a text of 1 to {MAX_PATTERN} letters")
    if "Regex" in pattern and is_risky(text):
        raise ValueError(f"the pattern {text[:60]!r} may take endless time on some texts")


def is_risky(pattern: str) -> bool:
    """Return True if a group that repeats without limit is itself repeated, or a branch has many such quantifiers.

    Also for references to groups, which no known tokenizer uses.
    """
    if REFERENCE.search(pattern):
        return True
    groups = [Repeats()]
    for token in TOKEN.findall(CHARACTERS.sub("x", ESCAPE.sub("x", pattern))):
        if token == "(":
            groups.append(Repeats())
        elif token[0] == ")" and len(groups) > 1:
            inner = groups.pop().most
            if inner and token != ")":
                return True
            groups[-1].add(inner)
        elif token == "|":
            groups[-1].branch = 0
        else:
            groups[-1].add(1)
    return max(group.most for group in groups) > MAX_REPEATS


class Repeats:
    """The quantifiers without an upper limit in a group: in its current branch, and in the branch with most of them."""

    def __init__(self) -> None:
        self.branch = self.most = 0

    def add(self, count: int) -> None:
        self.branch += count
        self.most = max(self.most, self.branch)
