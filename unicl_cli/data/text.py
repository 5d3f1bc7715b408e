"""Cleaning, checks and hashes of captions."""

import hashlib
import html
import re
import unicodedata

LONGEST = 2000
"""The most characters of a caption; longer texts are whole pages."""
ROUNDS = 4
"""The most layers of escaped entities that are resolved; two or three are common."""
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--[^<>]*-->")
_FILE_NAME = re.compile(r"(img|dsc|dscn|image|p\d+)[\W_]*\d+(\.\w+)?", re.IGNORECASE)
_INVISIBLE = frozenset(("Cf", "Cs", "Co", "Cn"))  # zero-width, BOM, lone surrogates, private use
_KEPT = frozenset("\u200c\u200d")  # joiners: they carry meaning in Persian, Indic scripts and emoji


def clean(text: str) -> str:
    """Clean a text: NFC, entities resolved, tags and invisible characters dropped, white space collapsed; case kept.

    Cleaning twice changes nothing: a text that still changes after ``ROUNDS`` rounds loses its ``&`` and ``<``.
    """
    for _ in range(ROUNDS):
        cleaned = _clean_once(text)
        if cleaned == text:
            return text
        text = cleaned
    return _clean_once(text.replace("&", " ").replace("<", " "))


def is_bad_text(text: str) -> bool:
    """True if a cleaned text is not a caption: far too long, a camera's file name, or not a word.

    A word has two letters, or is one character of a script that writes syllables or words (``猫``, ``집``).
    """
    letters = [c for c in text[:LONGEST] if c.isalpha()]
    is_word = len(letters) > 1 or any(map(_is_ideograph, letters))
    return not is_word or len(text) > LONGEST or _FILE_NAME.fullmatch(text) is not None


def replace_surrogates(text: str) -> str:
    """Return the text with a question mark for each character that UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def text_hash(text: str) -> int:
    """Return 62 bits, equal for texts that differ only in case, white space, Unicode form or a final period."""
    plain = " ".join(unicodedata.normalize("NFC", text).lower().split()).removesuffix(".").rstrip()
    digest = hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def _clean_once(text: str) -> str:
    text = html.unescape(text).replace("<PERSON>", "person")
    text = _TAG.sub(" ", text)
    text = unicodedata.normalize("NFC", "".join(_replace_invisible(c) for c in text))
    return " ".join(text.split())


def _is_ideograph(c: str) -> bool:
    return unicodedata.category(c) == "Lo" and unicodedata.east_asian_width(c) == "W"


def _replace_invisible(c: str) -> str:
    category = unicodedata.category(c)
    if category == "Cc":
        return " "
    return "" if category in _INVISIBLE and c not in _KEPT else c
