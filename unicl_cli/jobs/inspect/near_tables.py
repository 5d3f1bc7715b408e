"""Near duplicates as tables, notes and pairs of images on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from unicl_cli.data.near_images import MOST_COMPARED
from unicl_cli.data.pictures import ImageError, decode
from unicl_cli.evaluate.tables import make_table
from unicl_cli.formats import count_of, plural
from unicl_cli.jobs.inspect.near import NearPair, shown_words
from unicl_cli.jobs.inspect.run_tables import key_value_table
from unicl_cli.pages import html
from unicl_cli.pages.html import Html, section

SHOWN = 10
"""Pairs of the table; the document has more."""
_SIDE = 160


def near_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the counts, and the first pairs."""
    found = facts["near_duplicates"]
    yield key_value_table("Near duplicates", dict(near_lines(found)))
    if found["examples"]:
        table = make_table("Nearly equal images", ("row", "nearly the same as"), ("bits", "similarity"))
        for pair in found["examples"][:SHOWN]:
            table.add_row(*_cells(pair), str(pair["bits"]), f"{pair['similarity']:.3f}")
        yield table


def near_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a name and a count in words for each comparison."""
    for each in found["splits"]:
        images = f", of {count_of(each['groups'], 'image')}" if each["groups"] else ""
        yield (
            f"within {each['kind']} of {each['split']}",
            f"{each['near']:,} of {count_of(each['rows'], 'row')}{images}",
        )
    for split, rows in found["also_in_train"].items():
        yield f"{split} near train", count_of(rows, "row")
    for each in found["against"]:
        split = f", {each['split']}" if each["split"] else ""
        yield f"in {each['name']}{split}", f"{each['near']:,} nearly, {each['same']:,} the same"
    words = {"flat": "one colour", "unreadable": "cannot be read", "unhashed": "no hash"}
    if any(found[name] for name in words):
        yield "images not compared", ", ".join(f"{found[name]:,} {word}" for name, word in words.items() if found[name])
    if found["crowded"]:
        yield f"compared with {MOST_COMPARED:,} candidates only", count_of(found["crowded"], "image")


def near_notes(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence with advice for each comparison that found something."""
    found = facts.get("near_duplicates")
    if found is None:
        return
    for split, n in found["also_in_train"].items():
        if n:
            rows = f"{count_of(n, 'row')} of split {split} nearly {plural(n, 'repeats', 'repeat')} an image of train"
            yield f"{rows}: results on {split} may look too good; leave out the training rows with prepare --dedup near"
    for each in found["against"]:
        if n := each["same"] + each["near"]:
            rows = count_of(n, "row has an image", "rows have an image")
            yield f"{rows} of {each['name']}: leave them out with prepare --not-in {each['src']}"
    if n := sum(each["near"] for each in found["splits"]):
        rows = count_of(n, "row nearly repeats another image", "rows nearly repeat another image")
        yield f"{rows} of the same kind and split: leave them out with prepare --dedup near"


def near_sections(facts: Mapping[str, Any], pairs: Sequence[NearPair]) -> list[Html]:
    """Return the section of the page: counts, and the pairs as images side by side."""
    found = facts.get("near_duplicates")
    if found is None:
        return []
    counts = html.table(("", ""), near_lines(found), left=2)
    shown = [html.image_pairs(_draw_pair(pair) for pair in pairs)] if pairs else []
    note = "Images whose hashes differ in at most 4 of 64 bits and whose thumbnails correlate by 0.99 or more."
    return [section("Near duplicates", counts, *shown, note=note)]


def _draw_pair(pair: NearPair) -> tuple[tuple[str, str], tuple[str, str], str]:
    one = _uri(pair.row.image), shown_words(pair.row, pair.of.corpus)
    other = _uri(pair.like.image), shown_words(pair.like, pair.like_of.corpus)
    return one, other, " · ".join(_cells(pair.facts()))


def _uri(data: bytes) -> str:
    try:
        return html.data_uri(decode(data), _SIDE)
    except ImageError:
        return html.NOTHING


def _cells(pair: Mapping[str, Any]) -> tuple[str, str]:
    row, like = pair["row"], pair["like"]
    place = [like[name] for name in ("corpus", "split") if like[name] != row[name]]
    return row["key"], f"{like['key']} ({', '.join(place)})" if place else like["key"]
