"""Check of a `tokenizer.json` before the `tokenizers` library runs it: the work on a text stays in proportion to it."""

import base64
import math
import re
from collections.abc import Iterator
from typing import Any, cast

MAX_PARTS, MAX_GROWTH, MAX_PATTERN, MAX_CHARSMAP = 32, 64, 2000, 4_000_000
"""Largest number of steps, factor by which they may lengthen a text, length of a pattern, and of a character table."""
MAX_REPEATS = 4
"""Maximum number of open-ended quantifiers in one branch of a pattern: its time grows with a power of the length."""
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
MAX_WAYS = 10_000
"""Maximum number of ways in which a pattern may match one text, apart from open-ended quantifiers; GPT-4o's has 40."""
MAX_TIMES = 1000
"""A quantifier with at least this upper limit counts as open-ended, if what it repeats matches in one way."""
TOKEN = re.compile(
    r"(?P<open>\((?:\?(?:<?[=!]|>|[a-zA-Z-]*:?))?)|(?P<bar>\|)"
    r"|(?P<close>\))?(?P<times>[*+?]|\{(?:\d+,?\d*|,\d+)\})[?+]?|\)"
)
"""An opened group, a new branch, a closed group, a quantifier: of the closed group before it, or of a character."""
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
            raise ValueError(f"{place}: {key} should be a string")
    yield known
    if known["type"] == "Sequence":
        inner = known.get("normalizers" if place == "normalizer" else "pretokenizers")
        for each in inner if isinstance(inner, list) else ():
            yield from list_steps(each, place)


def check_pattern(pattern: Any) -> None:
    """Raise ValueError for a pattern that matches nothing at every place, or that may try exponentially many ways."""
    text = next(iter(pattern.values()), None) if isinstance(pattern, dict) and len(pattern) == 1 else None
    if not isinstance(text, str) or not 0 < len(text) <= MAX_PATTERN:
        raise ValueError(f"a pattern should be a string of 1 to {MAX_PATTERN} letters")
    if "Regex" in pattern and is_risky(text):
        raise ValueError(f"the pattern {text[:60]!r} may take unbounded time on some texts")


def is_risky(pattern: str) -> bool:
    """Return True if a group that repeats without limit is itself repeated, or if a pattern may try too many ways.

    Also for references to groups, which no known tokenizer uses.
    """
    if REFERENCE.search(pattern):
        return True
    groups = [Repeats()]
    for token in TOKEN.finditer(CHARACTERS.sub("x", ESCAPE.sub("x", pattern))):
        if token["open"]:
            groups.append(Repeats())
        elif token["bar"]:
            groups[-1].begin_branch()
        else:
            low, high = _read_times(token["times"])
            is_group = token[0][0] == ")" and len(groups) > 1
            inner = groups.pop() if is_group else Repeats()
            if inner.most and high > 1:
                return True
            groups[-1].add(inner, low, high)
    return any(group.most > MAX_REPEATS or group.ways > MAX_WAYS for group in groups)


def _read_times(quantifier: str | None) -> tuple[int, float]:
    """Return the least and the most times of a quantifier; None is one of a group without any."""
    known = {None: (1, 1.0), "?": (0, 1.0), "*": (0, math.inf), "+": (1, math.inf)}
    if quantifier in known:
        return known[quantifier]
    low, comma, high = str(quantifier)[1:-1].partition(",")
    most = float(high or math.inf) if comma else float(low)
    return int(low or 0), most


class Repeats:
    """A group: its quantifiers without an upper limit, and the ways in which it may match one text.

    Both are counted in its current branch; ``most`` is the branch with most of the quantifiers, and ``ways`` the sum.
    """

    def __init__(self) -> None:
        self.branch = self.most = 0
        self.before, self.here = 0.0, 1.0

    @property
    def ways(self) -> float:
        return self.before + self.here

    def begin_branch(self) -> None:
        self.before, self.here, self.branch = self.ways, 1.0, 0

    def add(self, inner: "Repeats", low: int, high: float) -> None:
        """Add a group or character that comes ``low`` to ``high`` times; without a limit, one time counts."""
        is_endless = high == math.inf or (inner.ways == 1 and high >= MAX_TIMES)
        self.branch += inner.most + is_endless
        self.most = max(self.most, self.branch)
        if is_endless:
            self.here *= inner.ways
        elif inner.ways == 1:
            self.here *= high - low + 1
        else:
            self.here *= math.exp(min(700.0, high * math.log(inner.ways))) + (low == 0)
