"""The facts of `unicl inspect` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from unicl_cli.core.byte_size import decimal_size
from unicl_cli.evaluate.tables import columns, percent
from unicl_cli.jobs.inspect.run_tables import checkpoint_tables, named_values, run_tables
from unicl_cli.jobs.inspect.target_matrix import batch_tables

BAR = 24
EIGHTHS = " ▏▎▍▌▋▊▉█"


def tables(document: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What is printed of a document, by its kind."""
    makers = {"corpus": corpus_tables, "batch": batch_tables, "checkpoint": checkpoint_tables, "run": run_tables}
    yield from makers[document["kind"]](document)
    if document.get("notes"):
        yield remarks(document["notes"])


def corpus_tables(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Sources, concepts, classes, captions, pairs, and last what to do."""
    yield from _sources(facts)
    if facts["concepts"]:
        yield concepts_table(facts)
    if "per_class" in facts:
        yield from _classes(facts)
    if "captions" in facts:
        yield _captions(facts)
    if "named_classes" in facts:
        yield _named(facts)
    if pair_rows(facts):
        yield _pairs(facts)
    if facts["rejected"]["n"]:
        yield _rejected(facts["rejected"])


def range_of(found: Mapping[str, int]) -> str:
    """``median (least – most)``, or the one value there is."""
    if not found:
        return "-"
    low, middle, high = found["min"], found["p50"], found["max"]
    return str(low) if low == high else f"{middle} ({low}–{high})"


def _sources(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    title = f"{facts['path']}: {facts['rows']:,} rows, {facts['classes']:,} classes, {decimal_size(facts['bytes'])}"
    table = columns(title, (), ())
    table.add_column("source", overflow="fold", min_width=8)
    for name in ("kind", "split"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "texts", "classes", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("side, px", justify="right", overflow="fold")  # 80 columns are not always enough
    for line in facts["sources"]:
        table.add_row(
            line["source"],
            line["kind"],
            line["split"],
            f"{line['rows']:,}",
            f"{line['texts']:,}" if line["texts"] else "-",
            f"{line['classes']:,}" if line["classes"] else "-",
            decimal_size(line["bytes"]),
            range_of(line["short_side"]),
        )
    yield table


def concepts_table(facts: Mapping[str, Any]) -> Table:
    table = columns(f"Concepts · split {facts['split']}", ("of",), ("pictures", "concepts", "images per concept"))
    for kind, found in facts["concepts"].items():
        each = found["pictures_per_concept"]
        shown = "-" if each is None else f"{each:,.1f}"
        table.add_row(kind, f"{found['pictures']:,}", f"{found['concepts']:,}", shown)
    return table


def bar(share: float, width: int = BAR) -> str:
    """A bar of eighths of a character."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _classes(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    found = facts["per_class"]
    quantiles = found["quantiles"]
    table = columns(f"Images per class · {spread_of(quantiles)}", ("class", ""), ("pictures",))
    most = max(1, quantiles["max"])

    def add(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            table.add_row(row["class"], bar(row["n"] / most), f"{row['n']:,}")

    add(found["largest"])
    hidden = facts["classes"] - len(found["largest"]) - len(found["smallest"])
    if hidden > 0:
        table.add_row(f"… {hidden:,} more", "", "")
    add(found["smallest"][max(0, -hidden) :])
    yield table


def _captions(facts: Mapping[str, Any]) -> Table:
    found = facts["captions"]
    of = "" if found["sampled"] == found["texts"] else f" of {found['sampled']:,} captions"
    rows = {
        "images with captions": f"{found['pictures']:,}",
        "captions": f"{found['texts']:,}",
        "distinct": f"{found['distinct']:,} ({percent(found['unique_text_share'])} %)",
        "words": f"{found['words']:,}",
        f"tokens{of}": spread_of(found["tokens"]),
        **({"tokens of prompts": spread_of(found["prompt_tokens"])} if "prompt_tokens" in found else {}),
        **{f"cut at context_length {length}": f"{percent(share)} %" for length, share in found["cut"].items()},
        "advised": f"context_length: {found['context_length']}",
    }
    return named_values(f"Captions · split {facts['split']} · tokenizer {found['tokenizer']}", rows)


def spread_of(quantiles: Mapping[str, int]) -> str:
    return " · ".join(f"{name} {value:,}" for name, value in quantiles.items())


def _named(facts: Mapping[str, Any]) -> Table:
    found = facts["named_classes"]
    more = found["never"] - len(found["never_named"])
    rest = f" and {more:,} more" if more else ""
    rows = {
        "named": f"{found['named']:,} of {facts['classes']:,} classes",
        "captioned images": f"{found['pictures']:,} name one ({percent(found['share'])} %)",
        "most often": ", ".join(f"{row['class']} {row['n']:,}" for row in found["most"]) or "-",
        "never": ", ".join(found["never_named"]) + rest if found["never"] else "-",
        "without a labelled image": f"{found['only_in_captions']:,} of those named",
    }
    return named_values("Classes that captions name", rows)


def _pairs(facts: Mapping[str, Any]) -> Table:
    found = facts["pairs"]
    rows = f"{found['label_rows']} label rows, {found['caption_rows']} others"
    return named_values(f"A batch of {found['batch_size']}: {rows}", pair_rows(facts))


def pair_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """How often rows of one concept meet, in words."""
    found, rows = facts["pairs"], dict[str, str]()
    if "labels" in found:
        each = found["labels"]
        rows["pairs of label rows with one class"] = f"{percent(each['same_concept_share'])} %"
        rows["others of its class, for each label row"] = f"{each['others_per_anchor']:.2f}"
    if "captions" in found:
        each = found["captions"]
        rows["pairs of captions with one text"] = f"{100 * each['same_text_share']:.2g} %"
        rows["others with its text, for each caption"] = f"{each['same_text_per_anchor']:.2f}"
        if facts["classes"]:
            rows["pairs of captions naming one class, at most"] = f"{percent(each['same_named_class_share'])} %"
    if "captions_naming_a_label" in found:
        each = found["captions_naming_a_label"]
        rows["captions naming its class, for each label row"] = f"{each['per_anchor']:.2f}"
    return rows


def _rejected(found: Mapping[str, Any]) -> Table:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["reasons"].items())
    table = columns(f"Left out: {reasons}", ("key", "reason", "detail"), ())
    for row in found["first"]:
        table.add_row(row["key"], row["reason"], row["detail"])
    return table


def remarks(lines: Sequence[str]) -> Table:
    """The sentences at the end."""
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("•", line)
    return table
