"""The facts of `unicl inspect` as a page with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from unicl_cli.contracts import NO_LABEL, Sample
from unicl_cli.core.byte_size import decimal_size
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.pictures import PictureError, decode
from unicl_cli.evaluate.tables import percent
from unicl_cli.jobs.inspect.batch import MISSED, POSITIVE, Shown
from unicl_cli.jobs.inspect.tables import pair_rows, range_of
from unicl_cli.pages import html
from unicl_cli.pages.html import Html, section, tag

SIDE = 160
"""Pixels of a sample image; it is shown at 120."""
THUMB = 40
LABEL = 9.0
"""Width of the column texts above a matrix, in cells."""
LETTERS = 30


def corpus_page(facts: Mapping[str, Any], corpus: Corpus, samples: int, shown: Shown | None) -> str:
    """Everything of the tables, sample images of each source, and one batch."""
    lead = f"{facts['rows']:,} rows in {', '.join(facts['splits'])} · {decimal_size(facts['bytes'])} · {facts['path']}"
    parts = [
        figures(facts),
        section("What to know", html.points(facts["notes"])) if facts["notes"] else Html(""),
        *(sample_section(corpus, line, samples) for line in sampled_groups(facts) if samples),
        sources_section(facts),
        *class_sections(facts),
        *caption_sections(facts),
        *([] if shown is None else batch_sections(shown)),
        rejected_section(facts),
    ]
    return html.page(facts["name"], lead, *(part for part in parts if part), footer(facts))


def figures(facts: Mapping[str, Any]) -> Html:
    """The largest figures."""
    side = facts["pictures"]["short_side"]
    shown: list[tuple[str, object]] = [("pictures", f"{facts['rows']:,}"), ("classes", f"{facts['classes']:,}")]
    if "captions" in facts:
        shown += [("captions", f"{facts['captions']['texts']:,}"), ("distinct", f"{facts['captions']['distinct']:,}")]
    shown += [
        ("short side", f"{side['p50']} px"),
        ("bytes an image", decimal_size(round(facts["pictures"]["mean_bytes"]))),
    ]
    return html.numbers(shown)


def sampled_groups(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Each source and kind once, of the split that is looked at where it has that."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in sorted(facts["sources"], key=lambda line: line["split"] != facts["split"]):
        found.setdefault((line["source"], line["kind"]), line)
    return list(found.values())


def sample_section(corpus: Corpus, line: Mapping[str, Any], samples: int) -> Html:
    """Images of the first row group of a source, kind and split: rows were permuted when the corpus was made."""
    table = corpus.table(line["split"], line["kind"])
    first = 0
    for shard in corpus.manifest["shards"]:
        if (shard["split"], shard["kind"]) == (line["split"], line["kind"]):
            if shard["source"] == line["source"]:
                break
            first += shard["rows"]
    group = next(
        s for s in corpus.manifest["shards"] if all(s[key] == line[key] for key in ("source", "kind", "split"))
    )
    chosen = np.unique(np.linspace(0, group["row_groups"][0] - 1, samples).astype(int)).tolist()
    shown = html.pictures(one_sample(corpus, table.read(first + row)) for row in chosen)
    title = f"{line['source']} · {line['kind']} · {line['split']}"
    return section(title, shown, note=f"{len(chosen)} of {line['rows']:,} rows")


def one_sample(corpus: Corpus, sample: Sample) -> tuple[str, str, str]:
    """Image, its class or first caption, its other captions."""
    try:
        uri = html.data_uri(decode(sample.image), SIDE)
    except PictureError as error:
        return html.NOTHING, f"cannot be decoded: {error}", sample.key
    if sample.label == NO_LABEL:
        return uri, next(iter(sample.texts), sample.key), " · ".join(sample.texts[1:])
    return uri, corpus.classes[sample.label].names[0], " · ".join(sample.texts)


def sources_section(facts: Mapping[str, Any]) -> Html:
    head = ("source", "kind", "split", "rows", "texts", "classes", "bytes", "short side, px", "long side, px")
    rows = [
        (
            *(line[key] for key in ("source", "kind", "split")),
            *(f"{line[key]:,}" if line[key] else "–" for key in ("rows", "texts", "classes")),
            decimal_size(line["bytes"]),
            range_of(line["short_side"]),
            range_of(line["long_side"]),
        )
        for line in facts["sources"]
    ]
    each = [
        (
            kind,
            f"{f['pictures']:,}",
            f"{f['concepts']:,}",
            "–" if f["concepts"] == 0 else f"{f['pictures_per_concept']:,.1f}",
        )
        for kind, f in facts["concepts"].items()
    ]
    head_of_concepts = ("of", "pictures", "concepts", "images per concept")
    note = (
        "A concept of labels is a class with an image; of captions, a word in the captions of more than five "
        f"images, function words left out. Split {facts['split']}."
    )
    about = f"In a batch of {facts['pairs']['batch_size']} rows."
    sources = section("Sources", html.table(head, rows, left=3))
    meetings = list(pair_rows(facts).items())
    if not meetings:
        return sources
    met = section("How often concepts meet", html.table(("", ""), meetings), note=about)
    counted = section("Concepts", html.table(head_of_concepts, each), note=note)
    return html.joined((sources, tag("div", counted, met, class_="split")))


def class_sections(facts: Mapping[str, Any]) -> list[Html]:
    """Images per class: the largest and smallest by name, all as a histogram."""
    found = facts.get("per_class")
    if not found:
        return []
    listed = list(found["largest"])
    hidden = facts["classes"] - len(listed) - len(found["smallest"])
    smallest = found["smallest"][max(0, -hidden) :]
    rows = [(row["class"], float(row["n"]), f"{row['n']:,}") for row in listed]
    rows += [(f"… {hidden:,} more", 0.0, "")] if hidden > 0 else []
    rows += [(row["class"], float(row["n"]), f"{row['n']:,}") for row in smallest]
    quantiles = " · ".join(f"{name} {value:,}" for name, value in found["quantiles"].items())
    bins = [(label_of(b["low"], b["high"]), b["n"]) for b in found["histogram"]]
    by_name = section("Images per class", html.bars(rows), note=quantiles)
    if len(bins) < 2:
        return [by_name]
    drawn = html.histogram(bins, unit="images in a class")
    return [
        tag("div", by_name, section("Classes by size", drawn, note=f"{facts['classes']:,} classes"), class_="split")
    ]


def label_of(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def caption_sections(facts: Mapping[str, Any]) -> list[Html]:
    """Lengths in tokens, what each context length cuts; the classes that captions name."""
    found = facts.get("captions")
    if not found:
        return []
    longest = max(n for n, count in enumerate(found["histogram"]) if count)
    bins = [(str(n), count) for n, count in enumerate(found["histogram"][: longest + 1])]
    advised = found["context_length"]
    cuts = [(f"{length}", f"{percent(share)} %") for length, share in found["cut"].items()]
    lengths = section(
        "Tokens in a caption",
        html.histogram(bins, unit="tokens", mark=advised if advised < len(bins) else None),
        html.table(("context length", "captions cut"), cuts),
        note=f"Tokenizer {found['tokenizer']}, {found['sampled']:,} captions. Advised: context_length {advised}.",
    )
    named = facts.get("named_classes")
    if not named:
        return [lengths]
    rows = [(row["class"], float(row["n"]), f"{row['n']:,}") for row in named["most"]]
    more = named["never"] - len(named["never_named"])
    never = f"Never named: {', '.join(named['never_named'])}{f' and {more:,} more' if more > 0 else ''}."
    about = (
        f"{named['named']:,} of {facts['classes']:,} classes, in {percent(named['share'])} % of the captioned images."
    )
    words = section("Classes that captions name", html.bars(rows), note=f"{about} {never if named['never'] else ''}")
    return [tag("div", lengths, words, class_="split")]


def rejected_section(facts: Mapping[str, Any]) -> Html:
    found = facts["rejected"]
    if not found["n"]:
        return Html("")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["reasons"].items())
    rows = [(row["key"], row["reason"], row["detail"]) for row in found["first"]]
    return section("Left out", html.table(("key", "reason", "detail"), rows, left=3), note=reasons)


def footer(facts: Mapping[str, Any]) -> Html:
    checksum = f" · {facts['checksum'][:16]}" if "checksum" in facts else ""
    return tag("footer", f"unicl inspect {facts['path']}{checksum}")


# -- a batch --------------------------------------------------------------------------------------------------------


def batch_page(shown: Shown) -> str:
    facts = shown.document
    lead = f"{', '.join(facts['corpora'])} · the batch after {facts['step']} steps · {facts['batch_size']:,} rows"
    return html.page(f"A batch of {Path(facts['path']).name}", lead, *batch_sections(shown), footer(facts))


def batch_sections(shown: Shown) -> list[Html]:
    """Both matrices with their images and texts, and the rows."""
    facts = shown.document
    clip, unicl = facts["clip"], facts["unicl"]
    uris = [html.data_uri(picture_of(each), THUMB) for each in shown.pictures]
    meanings = {"yes": "positive", "no": "negative", "missed": "false negative: the same class or text, pushed apart"}
    colours = (tag("span", tag("i", class_=name), words) for name, words in meanings.items())
    legend = tag("p", *colours, class_="legend")
    left = (
        f"{clip['positives']:,} positives; {clip['false_negatives']:,} pairs of one class are pushed apart, "
        f"{clip['per_anchor']:.1f} for each image"
    )
    rest = unicl["same_text_other_key"] + unicl["captions_naming_the_class"]
    right = f"{unicl['positives']:,} positives, {unicl['positives_per_anchor']:.1f} for each image" + (
        f"; {unicl['captions_naming_the_class']:,} pairs of a caption with the class that it names and "
        f"{unicl['same_text_other_key']:,} of equal texts stay apart" if rest else "; nothing is pushed apart"
    )  # fmt: skip
    both = tag(
        "div",
        tag("div", tag("h3", "As CLIP sees it"), tag("p", left, class_="note"), matrix(facts, "clip", uris)),
        tag("div", tag("h3", "As UniCL sees it"), tag("p", right, class_="note"), matrix(facts, "unicl", uris)),
        class_="pair",
    )
    note = (
        f"{facts['label_rows']} rows with a label and {facts['caption_rows']} with a caption; drawn are "
        f"{len(facts['shown'])}, ordered by class. Images are rows, texts are columns; the figures count all rows."
    )
    return [section("One batch, two targets", legend, both, note=note), rows_section(facts, uris)]


def picture_of(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def matrix(facts: Mapping[str, Any], which: str, uris: Sequence[str]) -> Html:
    """A target matrix as SVG: cells of side 1, images on the left, texts above."""
    cells = facts["matrix"][which]
    n = len(cells)
    parts = [Html(f'<rect class="no" x="0" y="0" width="{n}" height="{n}" rx=".3"/>')]
    kinds = {POSITIVE: "yes", MISSED: "missed"}
    for y, line in enumerate(cells):
        parts += [
            Html(f'<rect class="{kinds[cell]}" x="{x + 0.06}" y="{y + 0.06}" width=".88" height=".88" rx=".15"/>')
            for x, cell in enumerate(line)
            if cell in kinds
        ]
    for place, uri in enumerate(uris):
        parts.append(Html(f'<image href="{uri}" x="-1.25" y="{place}" width="1" height="1"/>'))
    for place, row in enumerate(facts["shown"]):
        turn = f"rotate(-60 {place + 0.5} -.3)"
        parts.append(tag("text", shortened(row["text"]), x=f"{place + 0.28}", y="-.3", font_size=".62", transform=turn))
    view = f"-1.4 {-LABEL} {n + 1.4 + LABEL * 0.55:.2f} {n + LABEL}"
    drawn = tag("svg", *parts, viewBox=view, role="img", aria_label=f"target matrix, {which}")
    return tag("div", drawn, class_="scroll")


def shortened(words: str) -> str:
    return words if len(words) <= LETTERS else f"{words[: LETTERS - 1].rstrip()}…"


def rows_section(facts: Mapping[str, Any], uris: Sequence[str]) -> Html:
    """The rows that are drawn, with what each one's target is."""
    rows = [
        (
            Html(f'<img src="{uri}" alt="">') if uri else "",
            row["text"],
            row["class"] or "caption, no label",
            row["positives"],
        )
        for row, uri in zip(facts["shown"], [*uris, *[""] * (len(facts["shown"]) - len(uris))], strict=True)
    ]
    return section("Its rows", html.table(("", "text", "class", "positives"), rows, left=3))
