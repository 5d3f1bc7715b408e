"""Terminal tables of the facts of a corpus, and of any document of `unicl inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from unicl_cli.data.manifest import describe_survival
from unicl_cli.evaluate.tables import make_table
from unicl_cli.formats import byte_size, count_of, format_share
from unicl_cli.jobs.inspect.near_tables import near_tables
from unicl_cli.jobs.inspect.run_tables import checkpoint_tables, key_value_table, run_tables
from unicl_cli.jobs.inspect.set_tables import set_tables
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
    """Yield the tables of a corpus: sources, concepts, classes, label sets, captions, pairs, near and left out rows."""
    yield from _sources_table(facts)
    if facts["concepts"]:
        yield concepts_table(facts)
    if "per_class" in facts:
        yield from _class_table(facts)
    if "label_sets" in facts:
        yield from set_tables(facts)
    yield from _caption_tables(facts)
    if pair_rows(facts):
        yield _pairs_table(facts)
    if "near_duplicates" in facts:
        yield from near_tables(facts)
    if facts["rejected"]["n"]:
        yield _rejects_table(facts["rejected"])


def format_range(found: Mapping[str, int]) -> str:
    """Return ``median (least–most)``, or the value if there is only one."""
    if not found:
        return "-"
    low, middle, high = found["min"], found["p50"], found["max"]
    return str(low) if low == high else f"{middle} ({low}–{high})"


def _sources_table(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    counts = f"{count_of(facts['rows'], 'row')}, {count_of(facts['classes'], 'class')}"
    survival = describe_survival(facts.get("survival", {}))
    title = f"{facts['path']} ({survival})" if survival else facts["path"]
    table = make_table(f"{title}: {counts}, {byte_size(facts['bytes'])}", (), ())
    table.add_column("source", overflow="fold", min_width=8)
    for name in ("kind", "split"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "texts", "classes", "side, px"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in facts["sources"]:
        table.add_row(
            line["source"],
            line["kind"],
            line["split"],
            f"{line['rows']:,}",
            f"{line['texts']:,}" if line["texts"] else "-",
            f"{line['classes']:,}" if line["classes"] else "-",
            format_range(line["short_side"]),
        )
    yield table
    if any("media" in line for line in facts["sources"]):
        yield _media_table(facts)
    if any(line["samples"] for line in facts["sources"]):
        yield _samples_table(facts)


def _media_table(facts: Mapping[str, Any]) -> Table:
    """Return the rows of each source that have an item of media, and those that lack it."""
    table = make_table("Media beside the images", ("source", "kind", "split", "media"), ("rows", "missing"))
    for line in facts["sources"]:
        for kind, found in line.get("media", {}).items():
            table.add_row(
                line["source"], line["kind"], line["split"], kind, f"{found['rows']:,}", f"{found['missing']:,}"
            )
    return table


def _samples_table(facts: Mapping[str, Any]) -> Table:
    """Return a few texts of each source as they are, each cut to one line."""
    table = make_table("Texts, a few of each source", (), ())
    table.add_column("source", overflow="fold", min_width=8)
    table.add_column("split", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis")
    for line in facts["sources"]:
        for number, text in enumerate(line["samples"]):
            of = ("", "") if number else (line["source"], line["split"])
            table.add_row(*of, " ".join(text.split()))
        if line["samples"]:
            table.add_section()
    return table


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
    spread = f"{quantiles['min']:,} to {quantiles['max']:,}, median {quantiles['p50']:,}"
    table = make_table(f"Images per class · {spread}", ("class", ""), ("images",))
    most = max(1, quantiles["max"])

    def add(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            table.add_row(row["class"], bar(row["n"] / most), f"{row['n']:,}")

    add(found["largest"])
    if found["smallest"]:
        hidden = found["classes"] - len(found["largest"]) - len(found["smallest"])
        table.add_row(f"… {hidden:,} more", "", "")
    add(found["smallest"])
    yield table


def _caption_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    if "captions" in facts:
        yield _caption_table(facts)
    if "named_classes" in facts:
        yield _named_classes_table(facts)


def _caption_table(facts: Mapping[str, Any]) -> Table:
    found = facts["captions"]
    sample = "" if found["sampled"] == found["texts"] else f" ({found['sampled']:,} sampled)"
    rows = {
        "images with captions": f"{found['pictures']:,}",
        "captions": f"{found['texts']:,}",
        "distinct": f"{found['distinct']:,} ({format_share(found['unique_text_share'])})",
        "words": f"{found['words']:,}",
        f"tokens per caption{sample}": format_quantiles(found["tokens"]),
        **({"tokens per prompt": format_quantiles(found["prompt_tokens"])} if "prompt_tokens" in found else {}),
        **{f"cut at context_length {length}": format_share(share) for length, share in found["cut"].items()},
        "advice": f"context_length: {found['context_length']}",
    }
    return key_value_table(f"Captions · split {facts['split']} · tokenizer {found['tokenizer']}", rows)


def format_quantiles(quantiles: Mapping[str, int]) -> str:
    return " · ".join(f"{name} {value:,}" for name, value in quantiles.items())


def _named_classes_table(facts: Mapping[str, Any]) -> Table:
    found = facts["named_classes"]
    more = found["never"] - len(found["never_named"])
    rest = f" and {more:,} more" if more else ""
    only = count_of(found["only_in_captions"], "class")
    rows = {
        "named": f"{found['named']:,} of {count_of(facts['classes'], 'class')}",
        "captioned images": f"{found['pictures']:,} name a class ({format_share(found['share'])})",
        "most often": _list_counts(found["most"]) or "-",
        **({"least often": _list_counts(found["least"])} if found["least"] else {}),
        "never": ", ".join(found["never_named"]) + rest if found["never"] else "-",
        "never, with a labelled image": count_of(found["only_in_labels"], "class"),
        "named, without a labelled image": only,
    }
    return key_value_table("Classes that captions name", rows)


def _list_counts(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['class']} {row['n']:,}" for row in rows)


def _pairs_table(facts: Mapping[str, Any]) -> Table:
    found = facts["pairs"]
    rows = f"{count_of(found['label_rows'], 'label row')}, {count_of(found['caption_rows'], 'caption row')}"
    return key_value_table(f"Pairs in a batch of {found['batch_size']:,}: {rows}", pair_rows(facts))


def pair_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the chances that rows of a batch share a concept, in words."""
    found, rows = facts["pairs"], dict[str, str]()
    if "labels" in found:
        each, has_sets = found["labels"], "label_sets" in facts
        same = "prompts that name a label of another label row" if has_sets else "pairs of label rows of the same class"
        rows[same] = format_share(each["same_concept_share"])
        others = "other rows' prompts that fit, per label row" if has_sets else "other rows of its class, per label row"
        rows[others] = f"{each['others_per_anchor']:.2f}"
        if "hidden_share" in each:
            rows["prompts of groups not annotated for a label row"] = format_share(each["hidden_share"])
    if "captions" in found:
        each = found["captions"]
        rows["pairs of captions with the same text"] = format_share(each["same_text_share"], 2)
        rows["other captions with its text, per caption"] = f"{each['same_text_per_anchor']:.2f}"
        if facts["classes"]:
            rows["pairs of captions naming the same class, at most"] = format_share(each["same_named_class_share"])
    if "captions_naming_a_label" in found:
        each = found["captions_naming_a_label"]
        rows["captions naming its class, per label row"] = f"{each['per_anchor']:.2f}"
    return rows


def _rejects_table(found: Mapping[str, Any]) -> Table:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["reasons"].items())
    shown = f", the first {len(found['first'])} of {found['n']:,}" if found["n"] > len(found["first"]) else ""
    table = make_table(f"Left out by prepare: {reasons}{shown}", ("key",), ())
    table.add_column("reason", no_wrap=True)
    table.add_column("detail")
    for row in found["first"]:
        table.add_row(row["key"], row["reason"], row["detail"])
    return table


def notes_list(lines: Sequence[str]) -> Table:
    """Return the notes as a list."""
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("•", line)
    return table
