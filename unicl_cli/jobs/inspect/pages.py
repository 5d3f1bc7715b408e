"""HTML pages with images for a corpus and a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from unicl_cli.contracts import Sample
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.pictures import ImageError, decode
from unicl_cli.formats import byte_size, count_of, format_share, plural
from unicl_cli.jobs.inspect.batch import HIDDEN, MISSED, POSITIVE, InspectedBatch
from unicl_cli.jobs.inspect.corpus import first_group
from unicl_cli.jobs.inspect.near import NearPair
from unicl_cli.jobs.inspect.near_tables import near_sections
from unicl_cli.jobs.inspect.set_tables import set_sections
from unicl_cli.jobs.inspect.tables import format_range, pair_rows
from unicl_cli.jobs.inspect.target_matrix import shade_positives
from unicl_cli.pages import html
from unicl_cli.pages.html import Html, section, tag

SIDE = 160
"""Largest side of a sample image in pixels; it is shown at 120."""
THUMB = 40
"""Largest side of an image beside a matrix, in pixels."""
LABEL = 9.0
"""Height of the column texts above a matrix, in cells."""
LETTERS = 30
"""Largest number of characters of a column text."""


def corpus_page(
    facts: Mapping[str, Any], corpus: Corpus, samples: int, shown: InspectedBatch | None, pairs: Sequence[NearPair] = ()
) -> str:
    """Return the page of a corpus: all tables, sample images of each source, near duplicates, and one batch."""
    splits = f"{plural(len(facts['splits']), 'Split', 'Splits')} {', '.join(facts['splits'])}"
    place = [facts["path"]] if facts["path"] != facts["name"] else []
    lead = " · ".join([splits, byte_size(facts["bytes"]), *place])
    parts = [
        figures(facts),
        section("Notes", html.bullet_list(facts["notes"])) if facts["notes"] else Html(""),
        *near_sections(facts, pairs),
        *(sample_section(corpus, line, samples) for line in sample_groups(facts) if samples),
        sources_section(facts),
        *class_sections(facts),
        *set_sections(facts),
        *caption_sections(facts),
        *([] if shown is None else batch_sections(shown)),
        rejected_section(facts),
    ]
    return html.build_page(facts["name"], lead, *(part for part in parts if part), footer(facts))


def figures(facts: Mapping[str, Any]) -> Html:
    """Return the main numbers of the corpus."""
    side = facts["pictures"]["short_side"]
    shown: list[tuple[str, object]] = [("rows", f"{facts['rows']:,}"), ("classes", f"{facts['classes']:,}")]
    if "captions" in facts:
        shown += [
            (f"captions · {facts['split']}", f"{facts['captions']['texts']:,}"),
            (f"distinct captions · {facts['split']}", f"{facts['captions']['distinct']:,}"),
        ]
    shown += [
        ("median shorter side", f"{side['p50']:,} px"),
        ("mean image file", byte_size(round(facts["pictures"]["mean_bytes"]))),
    ]
    return html.numbers(shown)


def sample_groups(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return each source and kind once, from the inspected split if it has that."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in sorted(facts["sources"], key=lambda line: line["split"] != facts["split"]):
        found.setdefault((line["source"], line["kind"]), line)
    return list(found.values())


def sample_section(corpus: Corpus, line: Mapping[str, Any], samples: int) -> Html:
    """Return images of the first row group of a source, kind and split; `prepare` shuffled the rows."""
    table = corpus.table(line["split"], line["kind"])
    group = first_group(corpus, line)
    chosen = np.unique(np.linspace(group.start, group.stop - 1, samples).astype(int)).tolist()
    shown = html.image_wall(sample_image(corpus, table.read(row)) for row in chosen)
    title = f"{line['source']} · {line['kind']} · {line['split']}"
    return section(title, shown, note=f"{len(chosen)} of {count_of(line['rows'], 'row')}")


def sample_image(corpus: Corpus, sample: Sample) -> tuple[str, str, str]:
    """Return the image, its classes or first caption, and its other captions."""
    try:
        uri = html.data_uri(decode(sample.image), SIDE)
    except ImageError as error:
        return html.NOTHING, f"cannot be decoded: {error}", sample.key
    if not sample.labels:
        return uri, next(iter(sample.texts), sample.key), " · ".join(sample.texts[1:])
    return uri, ", ".join(corpus.classes[label].names[0] for label in sample.labels), " · ".join(sample.texts)


def sources_section(facts: Mapping[str, Any]) -> Html:
    head = ("source", "kind", "split", "rows", "texts", "classes", "bytes", "short side, px", "long side, px")
    rows = [
        (
            *(line[key] for key in ("source", "kind", "split")),
            *(f"{line[key]:,}" if line[key] else "–" for key in ("rows", "texts", "classes")),
            byte_size(line["bytes"]),
            format_range(line["short_side"]),
            format_range(line["long_side"]),
        )
        for line in facts["sources"]
    ]
    concepts = [
        (
            kind,
            f"{f['pictures']:,}",
            f"{f['concepts']:,}",
            "–" if f["concepts"] == 0 else f"{f['pictures_per_concept']:,.1f}",
        )
        for kind, f in facts["concepts"].items()
    ]
    concept_head = ("of", "images", "concepts", "images per concept")
    note = (
        "A concept of labels is a class with an image. A concept of captions is a word in the captions of more than "
        f"five images, without function words. Split {facts['split']}."
    )
    about = f"Expected in a batch of {count_of(facts['pairs']['batch_size'], 'row')}."
    sources = section("Sources", html.table(head, rows, left=3))
    pairs = list(pair_rows(facts).items())
    if not pairs:
        return sources
    repeated = section("Rows that share a concept", html.table(("", ""), pairs), note=about)
    counted = section("Concepts", html.table(concept_head, concepts), note=note)
    return html.join_markup((sources, tag("div", counted, repeated, class_="split")))


def class_sections(facts: Mapping[str, Any]) -> list[Html]:
    """Return images per class: the largest and smallest by name, all as a histogram."""
    found = facts.get("per_class")
    if not found:
        return []
    hidden = found["classes"] - len(found["largest"]) - len(found["smallest"])
    rows = [(row["class"], float(row["n"]), f"{row['n']:,}") for row in found["largest"]]
    rows += [(f"… {hidden:,} more", 0.0, "")] if hidden else []
    rows += [(row["class"], float(row["n"]), f"{row['n']:,}") for row in found["smallest"]]
    quantiles = " · ".join(f"{name} {value:,}" for name, value in found["quantiles"].items())
    bins = [(label_of(b["low"], b["high"]), b["n"]) for b in found["histogram"]]
    by_name = section("Images per class", html.bar_chart(rows), note=quantiles)
    if len(bins) < 2:
        return [by_name]
    widths = [b["high"] - b["low"] for b in found["histogram"]]
    unit = "images per class" if len(set(widths)) == 1 else "images per class, each column twice as wide"
    by_size = section("Classes by size", html.histogram(bins, unit=unit), note=count_of(facts["classes"], "class"))
    return [tag("div", by_name, by_size, class_="split")]


def label_of(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def caption_sections(facts: Mapping[str, Any]) -> list[Html]:
    """Return lengths in tokens, the shares cut at each context length, and the classes that captions name."""
    found = facts.get("captions")
    if not found:
        return []
    longest = max(n for n, count in enumerate(found["histogram"]) if count)
    bins = [(str(n), count) for n, count in enumerate(found["histogram"][: longest + 1])]
    advised = found["context_length"]
    cuts = [(f"{length}", format_share(share)) for length, share in found["cut"].items()]
    counted = count_of(found["sampled"], "caption")
    lengths = section(
        "Tokens per caption",
        html.histogram(bins, unit="tokens", mark=advised if advised < len(bins) else None),
        html.table(("context length", "captions cut"), cuts),
        note=f"Tokenizer {found['tokenizer']}, {counted}. Advice: context_length {advised}.",
    )
    named = facts.get("named_classes")
    if not named:
        return [lengths]
    listed = [*named["most"], *named["least"]]
    rows = [(row["class"], float(row["n"]), f"{row['n']:,}") for row in listed]
    if hidden := named["named"] - len(listed):
        rows.insert(len(named["most"]), (f"… {hidden:,} more", 0.0, ""))
    more = named["never"] - len(named["never_named"])
    never = f"Never named: {', '.join(named['never_named'])}{f' and {more:,} more' if more > 0 else ''}."
    share = format_share(named["share"])
    added = f" Labels add {count_of(named['only_in_labels'], 'class')}." if named["only_in_labels"] else ""
    about = f"{named['named']:,} of {count_of(facts['classes'], 'class')}, in {share} of the captioned images."
    mentions = section(
        "Classes that captions name", html.bar_chart(rows), note=f"{about} {never if named['never'] else ''}{added}"
    )
    return [tag("div", lengths, mentions, class_="split")]


def rejected_section(facts: Mapping[str, Any]) -> Html:
    found = facts["rejected"]
    if not found["n"]:
        return Html("")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["reasons"].items())
    rows = [(row["key"], row["reason"], row["detail"]) for row in found["first"]]
    return section("Left out by prepare", html.table(("key", "reason", "detail"), rows, left=3), note=reasons)


def footer(facts: Mapping[str, Any]) -> Html:
    checksum = f" · {facts['checksum'][:16]}" if "checksum" in facts else ""
    return tag("footer", f"unicl inspect {facts['path']}{checksum}")


# -- a batch --------------------------------------------------------------------------------------------------------


def batch_page(shown: InspectedBatch) -> str:
    facts = shown.document
    drawn = "The first batch" if facts["step"] == 0 else f"The batch after {count_of(facts['step'], 'step')}"
    lead = f"{drawn}: {count_of(facts['batch_size'], 'row')} of {count_of(len(facts['corpora']), 'corpus', 'corpora')}"
    return html.build_page(f"A batch of {Path(facts['path']).name}", lead, *batch_sections(shown), footer(facts))


def batch_sections(shown: InspectedBatch) -> list[Html]:
    """Return both matrices with their images and texts, and the rows."""
    facts = shown.document
    clip, unicl = facts["clip"], facts["unicl"]
    uris = [html.data_uri(to_image(each), THUMB) for each in shown.images]
    meanings = {"yes": "positive", "no": "negative", "missed": "false negative: same class or text, pushed apart"}
    meanings |= {"unknown": "hidden: a group that the row is not annotated for"} if unicl["hidden"] else {}
    colours = (tag("span", tag("i", class_=name), words) for name, words in meanings.items())
    legend = tag("p", *colours, class_="legend")
    left = (
        f"{clip['positives']:,} positives; {clip['false_negatives']:,} pairs of the same class are pushed apart, "
        f"{clip['per_anchor']:.1f} per image"
    )
    rest = unicl["same_text_other_key"] + unicl["captions_naming_the_class"]
    right = f"{unicl['positives']:,} positives, {unicl['positives_per_anchor']:.1f} per image" + (
        f"; {unicl['captions_naming_the_class']:,} pairs of a caption and the class it names, and "
        f"{unicl['same_text_other_key']:,} of equal texts, stay negatives" if rest else "; nothing is pushed apart"
    )  # fmt: skip
    right += f"; {unicl['hidden']:,} pairs are hidden" if unicl["hidden"] else ""
    right += "; the darker a cell, the larger its share of the image's target" if "shares" in facts else ""
    both = tag(
        "div",
        tag("div", tag("h3", "CLIP's targets"), tag("p", left, class_="note"), matrix(facts, "clip", uris)),
        tag("div", tag("h3", "UniCL's targets"), tag("p", right, class_="note"), matrix(facts, "unicl", uris)),
        class_="pair",
    )
    note = (
        f"{count_of(facts['label_rows'], 'row')} with a label and {facts['caption_rows']:,} with a caption. The "
        f"matrices show {len(facts['shown'])} of them by class: images are rows, texts are columns. The counts are of "
        "all rows."
    )
    return [section("One batch, two targets", legend, both, note=note), rows_section(facts, uris)]


def to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def matrix(facts: Mapping[str, Any], which: str, uris: Sequence[str]) -> Html:
    """Return a target matrix as SVG: cells of side 1, images on the left, texts above."""
    cells = facts["matrix"][which]
    n = len(cells)
    parts = [Html(f'<rect class="no" x="0" y="0" width="{n}" height="{n}" rx=".3"/>')]
    kinds = {POSITIVE: "yes", MISSED: "missed", HIDDEN: "unknown"}
    depth = shade_positives(facts) if which == "unicl" else {}
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            if cell in kinds:
                shade = f' opacity="{0.2 + 0.8 * depth[y, x]:.2f}"' if (y, x) in depth else ""
                box = f'x="{x + 0.06}" y="{y + 0.06}" width=".88" height=".88" rx=".15"'
                parts.append(Html(f'<rect class="{kinds[cell]}" {box}{shade}/>'))
    for place, uri in enumerate(uris):
        parts.append(Html(f'<image href="{uri}" x="-1.25" y="{place}" width="1" height="1"/>'))
        parts.append(Html(f'<rect class="edge" x="-1.25" y="{place + 0.02}" width="1" height=".96"/>'))
    for place, row in enumerate(facts["shown"]):
        turn = f"rotate(-60 {place + 0.5} -.3)"
        parts.append(tag("text", shorten(row["text"]), x=f"{place + 0.28}", y="-.3", font_size=".62", transform=turn))
    view = f"-1.4 {-LABEL} {n + 1.4 + LABEL * 0.55:.2f} {n + LABEL}"
    svg = tag("svg", *parts, viewBox=view, role="img", aria_label=f"target matrix, {which}")
    return html.scrolling(svg)


def shorten(words: str) -> str:
    return words if len(words) <= LETTERS else f"{words[: LETTERS - 1].rstrip()}…"


def rows_section(facts: Mapping[str, Any], uris: Sequence[str]) -> Html:
    """Return the shown rows with the number of positives of each."""
    rows = [
        (
            Html(f'<img src="{uri}" alt="">') if uri else "",
            row["text"],
            ", ".join(row["classes"]) or "caption, no label",
            row["positives"],
        )
        for row, uri in zip(facts["shown"], [*uris, *[""] * (len(facts["shown"]) - len(uris))], strict=True)
    ]
    return section("Rows of the batch", html.table(("", "text", "class", "positives"), rows, left=3))
