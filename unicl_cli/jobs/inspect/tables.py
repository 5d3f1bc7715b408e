"""Terminal tables of the facts of a corpus, and of any document of `unicl inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from unicl_cli.core.byte_size import decimal_size
from unicl_cli.evaluate.tables import make_table, percent
from unicl_cli.jobs.inspect.run_tables import checkpoint_tables, key_value_table, run_tables
from unicl_cli.jobs.inspect.target_matrix import batch_tables

BAR = 24
EIGHTHS = " ▏▎▍▌▋▊▉█"


def tables(document: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the tables of a document of any kind, then its notes."""
    makers = {"corpus": corpus_tables, "batch": batch_tables, "checkpoint": checkpoint_tables, "run": run_tables}
    yield from makers[document["kind"]](document)
    if document.get("notes"):
        yield notes_list(document["notes"])


def corpus_tables(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the tables of a corpus: sources, concepts, classes, captions, pairs and rejected rows."""
    yield from _sources_table(facts)
    if facts["concepts"]:
        yield concepts_table(facts)
    if "per_class" in facts:
        yield from _class_table(facts)
    if "captions" in facts:
        yield _caption_table(facts)
    if "named_classes" in facts:
        yield _named_classes_table(facts)
    if pair_rows(facts):
        yield _pairs_table(facts)
    if facts["rejected"]["n"]:
        yield _rejects_table(facts["rejected"])


def format_range(found: Mapping[str, int]) -> str:
    """Return ``median (least–most)``, or the value if there is only one."""
    if not found:
        return "-"
    low, middle, high = found["min"], found["p50"], found["max"]
    return str(low) if low == high else f"{middle} ({low}–{high})"


def _sources_table(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    title = f"{facts['path']}: {facts['rows']:,} rows, {facts['classes']:,} classes, {decimal_size(facts['bytes'])}"
    table = make_table(title, (), ())
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
            format_range(line["short_side"]),
        )
    yield table


def concepts_table(facts: Mapping[str, Any]) -> Table:
    table = make_table(f"Concepts · split {facts['split']}", ("of",), ("images", "concepts", "images per concept"))
    for kind, found in facts["concepts"].items():
        each = found["pictures_per_concept"]
        shown = "-" if each is None else f"{each:,.1f}"
        table.add_row(kind, f"{found['pictures']:,}", f"{found['concepts']:,}", shown)
    return table


def bar(share: float, width: int = BAR) -> str:
    """Return a bar with a resolution of an eighth of a character."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _class_table(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    found = facts["per_class"]
    quantiles = found["quantiles"]
    table = make_table(f"Images per class · {format_quantiles(quantiles)}", ("class", ""), ("images",))
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


def _caption_table(facts: Mapping[str, Any]) -> Table:
    found = facts["captions"]
    sample = "" if found["sampled"] == found["texts"] else f" ({found['sampled']:,} sampled)"
    rows = {
        "images with captions": f"{found['pictures']:,}",
        "captions": f"{found['texts']:,}",
        "distinct": f"{found['distinct']:,} ({percent(found['unique_text_share'])} %)",
        "words": f"{found['words']:,}",
        f"tokens per caption{sample}": format_quantiles(found["tokens"]),
        **({"tokens per prompt": format_quantiles(found["prompt_tokens"])} if "prompt_tokens" in found else {}),
        **{f"cut at context_length {length}": f"{percent(share)} %" for length, share in found["cut"].items()},
        "advice": f"context_length: {found['context_length']}",
    }
    return key_value_table(f"Captions · split {facts['split']} · tokenizer {found['tokenizer']}", rows)


def format_quantiles(quantiles: Mapping[str, int]) -> str:
    return " · ".join(f"{name} {value:,}" for name, value in quantiles.items())


def _named_classes_table(facts: Mapping[str, Any]) -> Table:
    found = facts["named_classes"]
    more = found["never"] - len(found["never_named"])
    rest = f" and {more:,} more" if more else ""
    rows = {
        "named": f"{found['named']:,} of {facts['classes']:,} classes",
        "captioned images": f"{found['pictures']:,} name a class ({percent(found['share'])} %)",
        "most often": ", ".join(f"{row['class']} {row['n']:,}" for row in found["most"]) or "-",
        "never": ", ".join(found["never_named"]) + rest if found["never"] else "-",
        "named, without a labelled image": f"{found['only_in_captions']:,} classes",
    }
    return key_value_table("Classes that captions name", rows)


def _pairs_table(facts: Mapping[str, Any]) -> Table:
    found = facts["pairs"]
    rows = f"{found['label_rows']} label rows, {found['caption_rows']} caption rows"
    return key_value_table(f"Pairs in a batch of {found['batch_size']}: {rows}", pair_rows(facts))


def pair_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the chances that rows of a batch share a concept, in words."""
    found, rows = facts["pairs"], dict[str, str]()
    if "labels" in found:
        each = found["labels"]
        rows["pairs of label rows of the same class"] = f"{percent(each['same_concept_share'])} %"
        rows["other rows of its class, per label row"] = f"{each['others_per_anchor']:.2f}"
    if "captions" in found:
        each = found["captions"]
        rows["pairs of captions with the same text"] = f"{100 * each['same_text_share']:.2g} %"
        rows["other captions with its text, per caption"] = f"{each['same_text_per_anchor']:.2f}"
        if facts["classes"]:
            rows["pairs of captions naming the same class, at most"] = f"{percent(each['same_named_class_share'])} %"
    if "captions_naming_a_label" in found:
        each = found["captions_naming_a_label"]
        rows["captions naming its class, per label row"] = f"{each['per_anchor']:.2f}"
    return rows


def _rejects_table(found: Mapping[str, Any]) -> Table:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["reasons"].items())
    table = make_table(f"Left out by prepare: {reasons}", ("key", "reason", "detail"), ())
    for row in found["first"]:
        table.add_row(row["key"], row["reason"], row["detail"])
    return table


def notes_list(lines: Sequence[str]) -> Table:
    """Return the notes as a list."""
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("•", line)
    return table
