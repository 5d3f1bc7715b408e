"""Cleaning, checks and hashes of captions."""

import hashlib
import html
import re
import unicodedata

LONGEST = 2000
"""Maximum number of characters of a caption; longer texts are whole pages."""
PAGE = 100_000
"""Maximum number of characters that are cleaned; nothing stays of a longer text, which is a file, not a caption."""
ROUNDS = 4
"""Maximum number of layers of escaped entities that are resolved; two or three are common."""
_ELEMENTS = (
    "a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink blockquote body "
    "br button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em "
    "embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i "
    "iframe img input ins isindex kbd keygen label legend li link listing main map mark marquee menu menuitem meta "
    "meter nav nobr noembed noframes noscript object ol optgroup option output p param picture plaintext pre progress "
    "q rb rp rt rtc ruby s samp script search section select slot small source spacer span strike strong style sub "
    "summary sup svg table tbody td template textarea tfoot th thead time title tr track tt u ul var video wbr xmp"
)
"""HTML's elements with those of its older versions (https://html.spec.whatwg.org, sections 4 and 16.2)."""
_FLAGS = "allowfullscreen async autofocus autoplay checked controls defer disabled hidden loop muted nowrap open"
"""Attributes of HTML that need no value."""
_VALUE = r"""(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=`]++)"""
_TAG = re.compile(
    rf"</?(?:{_ELEMENTS.replace(' ', '|')})"
    rf"(?:(?:\s++|(?<=[\"']))(?:[\w:.@-]++\s*+=\s*+{_VALUE}|(?:{_FLAGS.replace(' ', '|')})(?=[\s/>])))*+\s*+/?>"
    r"|<!--[^<]*?-->|<!doctype\b[^<>]*>",
    re.IGNORECASE,
)
"""A tag of an element that HTML has, with well-formed attributes; a comment; a document type.

Everything else in angle brackets is writing: ``I <3 cats -> happy``, ``a <b and c> d``, ``<person>``.
"""
_FILE_NAME = re.compile(r"(img|dsc|dscn|image|p\d+)[\W_]*\d+(\.\w+)?", re.IGNORECASE)
_INVISIBLE = frozenset(("Cf", "Cs", "Co", "Cn"))  # zero-width, BOM, lone surrogates, private use
_KEPT = frozenset("\u200c\u200d")  # joiners: they carry meaning in Persian, Indic scripts and emoji


def clean(text: str) -> str:
    """Clean a text: NFC, entities resolved, tags and invisible characters dropped, white space collapsed; case kept.

    Cleaning twice changes nothing: a text that still changes after ``ROUNDS`` rounds loses its ``&`` and ``<``. Nothing
    is left of a text with more than ``PAGE`` characters.
    """
    if len(text) > PAGE:
        return ""
    for _ in range(ROUNDS):
        cleaned = _clean_once(text)
        if cleaned == text:
            return text
        text = cleaned
    return _clean_once(text.replace("&", " ").replace("<", " "))


def has_markup(text: str) -> bool:
    """Return whether `clean` removes tags or comments of HTML from a text, also escaped ones (``&lt;b&gt;``)."""
    if "<" not in text and "&" not in text:
        return False
    for _ in range(ROUNDS):
        if len(text) > PAGE or _TAG.search(text):
            return len(text) <= PAGE
        text = html.unescape(text)
    return False


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
