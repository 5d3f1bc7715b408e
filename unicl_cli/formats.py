"""Numbers as text, in one form for each kind: counts with their noun, percent, bytes, durations and times."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
NOTHING = "–"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SHARES = re.compile(
    r"(?:(.+)_)?(?:top(\d+)|r(\d+)|(map))"
    r"|mean_per_class|map_micro|f1_(macro|micro)|label_share|unique_text|padding|data_frac"
)
"""Names of metrics that are fractions, as in `unicl eval --json` and metrics.jsonl."""
WORDS = {"map_micro": "mAP micro", "f1_macro": "F1 macro", "f1_micro": "F1 micro"}
"""Display names of metrics, where they differ from the words of their keys."""
RAW = "raw_"
"""Prefix of metrics of the trained weights, next to those of their moving average."""
SHORT_GAP = 4
"""A list is not cut if that saves only so few lines: the cut itself takes one."""


def plural(number: int, one: str, several: str) -> str:
    """Return ``one`` for 1, else ``several``: a noun or a verb."""
    return one if number == 1 else several


def count_of(number: int, noun: str, several: str | None = None) -> str:
    """Return the number with its noun: ``"1 row"``, ``"8,121 rows"``, ``"3 classes"``, ``"2 corpora"``."""
    if several is None:
        several = f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
    return f"{number:,} {plural(number, noun, several)}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return ``"44.7"`` for 0.447, a dash for None: for a column whose head has the percent sign."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}"


def format_share(share: float, digits: int = 1) -> str:
    """Return ``"44.7 %"`` for 0.447."""
    return f"{percent(share, digits)} %"


def interval(bounds: Sequence[float] | None) -> str:
    """Return the bounds of a share in percent, ``"41.2–48.3"``; a dash for None."""
    return NOTHING if bounds is None else f"{percent(bounds[0])}–{percent(bounds[1])}"


def label_figure(name: str) -> str:
    """Return the display name of a metric: ``"top-1"`` for top1, ``"text to image R@1"`` for text_to_image_r1."""
    if name == "img_s":
        return "img/s"
    if name in WORDS:
        return WORDS[name]
    if name.startswith(RAW):
        return f"raw {label_figure(name.removeprefix(RAW))}"
    found = SHARES.fullmatch(name)
    shown = found and ((found[2] and f"top-{found[2]}") or (found[3] and f"R@{found[3]}") or (found[4] and "mAP"))
    if found is None or not shown:
        return name.replace("_", " ")
    of = (found[1] or "").replace("_", " ")
    return f"{of} {shown}" if of else shown


def format_figure(name: str, value: float) -> str:
    """Return the value of a metric as text: a fraction in percent, any other with four significant digits."""
    return format_share(value) if SHARES.fullmatch(name.removeprefix(RAW)) else f"{value:.4g}"


def format_figures(figures: Mapping[str, object]) -> str:
    """Return the metrics of a mapping in a line: ``"top-1 44.7 %, text to image R@1 33.3 %"``."""
    return ", ".join(
        f"{label_figure(name)} {format_figure(name, value)}" for name, value in figures.items() if type(value) is float
    )


def byte_size(count: float) -> str:
    """Return ``"3.2 GiB"`` for 3.2 times 2**30 bytes."""
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {UNITS[unit]}" if unit else f"{count:.0f} B"


def format_duration(seconds: float) -> str:
    """Return a duration as ``1h12m``, ``3m05s`` or ``42s``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_age(seconds: float) -> str:
    """Return a duration in days from two days on."""
    return format_duration(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def format_time(seconds: float) -> str:
    """Return a time of the clock, given in seconds since 1970, as ``2026-11-28 09:15`` in the local time zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def split_ends(items: Sequence[T], ends: int) -> tuple[Sequence[T], int, Sequence[T]]:
    """Return the first ``ends`` items, the number left out, and the last ``ends``; all items if few are left out."""
    hidden = len(items) - 2 * ends
    if hidden <= SHORT_GAP:
        return items, 0, ()
    return items[:ends], hidden, items[-ends:]


def fit_parts(parts: Sequence[str], width: int, between: str) -> str:
    """Join as many of the first parts as fit into ``width`` characters; the first one is always there."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(between) + len(part) > width:
            break
        line += between + part
    return line


def list_first(words: Sequence[str], most: int = 10) -> str:
    """Return the words with commas; of many, the first ``most`` and the number of the others."""
    if len(words) <= most + 1:
        return ", ".join(words)
    return f"{', '.join(words[:most])} and {len(words) - most:,} more"
