"""HTML pages in one file: inline style, charts and images; no scripts, nothing from the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from unicl_cli.errors import UniclError, escape_control, is_quiet, write_line
from unicl_cli.storage.files import write_output_data

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy: the browser runs and fetches nothing, whatever the page contains."""
NOTHING = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
"""Placeholder of an image that cannot be shown."""
LOSSLESS = 64
"""Images up to this side are kept as PNG: JPEG spoils small drawings, and PNG costs little."""


class Html(str):
    """Text that is markup already; every other string is escaped where it enters a page."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape a value unless it is markup: its markup, and its control characters as on a terminal."""
    if isinstance(value, Html):
        return value
    return Html(escape(escape_control(str(value))))


def tag(name: str, *inside: object, **attributes: str) -> Html:
    """Return an element; ``class_`` sets the attribute class."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join_markup(inside)}</{name}>")


def join_markup(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(text(part) for part in parts))


def build_page(title: str, lead: str, *sections: Html) -> str:
    """Return the whole document."""
    head = (
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    body = tag("main", tag("header", tag("h1", title), tag("p", lead, class_="lead")), *sections)
    return f'<!doctype html>\n<html lang="en">{tag("head", *head)}{tag("body", body)}</html>\n'


def write_page(path: Path, document: str) -> None:
    """Write the file, whole or not at all, and say where it is on stderr."""
    try:
        write_output_data(path, document)
    except OSError as error:
        raise UniclError(f"--html {path}: cannot be written: {error.strerror}", "name another file") from error
    if not is_quiet():
        write_line(f"page: {path}")


def section(title: str, *inside: Html, note: str = "") -> Html:
    """Return a section: heading, note and content."""
    about = tag("p", note, class_="note") if note else Html("")
    return tag("section", tag("h2", title), about, *inside)


def numbers(facts: Sequence[tuple[str, object]]) -> Html:
    """Return a few large numbers: (name, value)."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="numbers")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> Html:
    """Return a table: ``left`` columns of words, then numbers. Wide tables scroll; a head of empty names is omitted."""

    def line(name: str, cells: Sequence[object]) -> Html:
        return tag("tr", *(tag(name, cell, class_="word" if n < left else "figure") for n, cell in enumerate(cells)))

    body = tag("tbody", *(line("td", row) for row in rows))
    top = tag("thead", line("th", head)) if any(head) else Html("")
    return scrolling(tag("table", top, body))


def scrolling(wide: Html) -> Html:
    """Return wide content in a box that scrolls sideways, with a shadow at each edge that hides something."""
    return tag("div", wide, class_="scroll", tabindex="0")  # the arrow keys scroll it, too


def bar_chart(rows: Sequence[tuple[str, float, str]], *, full: float | None = None) -> Html:
    """Return bars of (name, value, value as shown); no bar if nothing is shown.

    A bar of the value ``full``, by default the largest, has the whole width.
    """
    most = full or max((value for _, value, _ in rows), default=0) or 1

    def line(name: str, value: float, shown: str) -> Html:
        filled = tag("span", tag("i", style=f"width:{100 * value / most:.1f}%"), class_="track" if shown else "")
        return tag("li", tag("span", name, class_="name"), filled, tag("span", shown, class_="value"))

    return tag("ul", *(line(*row) for row in rows), class_="bars")


def interval_chart(rows: Sequence[tuple[str, float, tuple[float, float], str]]) -> Html:
    """Return (name, value, interval, value as shown) as dots with whiskers on one axis, with a line at zero."""
    least = min(0.0, *(low for _, _, (low, _), _ in rows))
    across = max(0.0, *(high for _, _, (_, high), _ in rows)) - least or 1.0

    def place(value: float) -> str:
        return f"{100 * (value - least) / across:.1f}%"

    def line(name: str, value: float, bounds: tuple[float, float], shown: str) -> Html:
        low, high = bounds
        whisker = tag("i", style=f"left:{place(low)};width:{100 * (high - low) / across:.1f}%")
        zero, dot = tag("s", style=f"left:{place(0)}"), tag("b", style=f"left:{place(value)}")
        drawn = tag("span", zero, whisker, dot, class_="whisker")
        return tag("li", tag("span", name, class_="name"), drawn, tag("span", shown, class_="value"))

    return tag("ul", *(line(*row) for row in rows), class_="bars")


def histogram(bins: Sequence[tuple[str, int]], *, unit: str, mark: int | None = None) -> Html:
    """Return (label, count) bins as columns; ``mark`` is drawn at the left edge of that bin."""
    most = max((count for _, count in bins), default=0) or 1
    columns = [
        tag(
            "i",
            class_="mark" if n == mark else "",
            style=f"height:{100 * count / most:.1f}%",
            title=f"{label}: {count:,}",
        )
        for n, (label, count) in enumerate(bins)
    ]
    ends = tag("div", tag("span", bins[0][0]), tag("span", unit), tag("span", bins[-1][0]), class_="axis")
    return tag("div", tag("div", *columns, class_="columns"), ends, class_="histogram")


def line_chart(
    points: Sequence[tuple[float, float]], *, name: str, form: Callable[[float], str] = "{:.3g}".format
) -> Html:
    """Return (x, y) points as a curve that fills the width, labelled with its ends and its range in ``form``."""
    xs, ys = zip(*points, strict=True)
    low, high, first, last = min(ys), max(ys), xs[0], xs[-1]
    across, up = (last - first) or 1, (high - low) or 1
    path = " ".join(f"{1000 * (x - first) / across:.1f},{220 - 200 * (y - low) / up:.1f}" for x, y in points)
    curve = tag("polyline", points=path, fill="none", vector_effect="non-scaling-stroke")
    drawn = tag("svg", curve, viewBox="0 0 1000 240", preserveAspectRatio="none", role="img", aria_label=name)
    scale = tag("div", tag("span", form(high)), tag("span", form(low)), class_="scale")
    axis = tag("div", tag("span", f"{first:,.0f}"), tag("span", name), tag("span", f"{last:,.0f}"), class_="axis")
    return tag("div", tag("div", scale, drawn, class_="plot"), axis, class_="line")


def data_uri(image: Image.Image, side: int) -> str:
    """Encode an image for the page itself, its long side at most ``side`` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    kind = "png" if max(small.size) <= LOSSLESS else "jpeg"
    small.save(out, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def image_wall(items: Iterable[tuple[str, str, str]]) -> Html:
    """Return a wall of images from (data URI, caption, small print)."""

    def one(uri: str, caption: str, small: str) -> Html:
        image = Html(f'<img src="{text(uri)}" alt="{text(caption)}" loading="lazy">')
        return tag("figure", image, tag("figcaption", caption, tag("small", small)))

    return tag("div", *(one(*item) for item in items), class_="pictures")


def image_pairs(pairs: Iterable[tuple[tuple[str, str], tuple[str, str], str]]) -> Html:
    """Return pairs of images side by side, from (data URI, caption) of each and the small print of both."""

    def one(left: tuple[str, str], right: tuple[str, str], small: str) -> Html:
        images = (Html(f'<img src="{text(uri)}" alt="{text(words)}" loading="lazy">') for uri, words in (left, right))
        words = join_markup(dict.fromkeys(each for _, each in (left, right) if each), " | ")
        return tag("figure", tag("div", *images, class_="two"), tag("figcaption", words, tag("small", small)))

    return tag("div", *(one(*pair) for pair in pairs), class_="pictures pairs")


def bullet_list(sentences: Iterable[object]) -> Html:
    """Return sentences as a list."""
    return tag("ul", *(tag("li", sentence) for sentence in sentences), class_="points")
