"""What `prepare` has to say when it is done: the facts as `--json` prints them, and the table made of them."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.contracts import ClassName
from unicl_cli.core.byte_size import decimal_size
from unicl_cli.errors import plain
from unicl_cli.jobs.prepare.engines.local import Marker
from unicl_cli.jobs.prepare.progress import listed

_HEADER = ("source", "kind", "split", "rows", "left out", "size", "classes", "short side")
_CUT = "the file is cut off or damaged: copy or download it again"
REMEDIES = {
    "bad_label": "the line's label cannot be read: see its detail",
    "bad_line": "the line cannot be read: see its detail",
    "bad_path": "the image's path leads out of the data set: see its detail",
    "bad_text": "the caption says nothing (no letters, a file name, a page): --text raw keeps all that is not blank",
    "bomb": "more than 64 million pixels: shrink the image beforehand",
    "broken": _CUT,
    "duplicate": "the same image as an earlier row, asked for by --dedup exact",
    "empty": "the file has no bytes: copy or download it again",
    "missing_file": "no file at that place: paths are relative to the list",
    "no_label": "no class: put the image into a folder, fill in its label, or use --captions or --images",
    "no_text": "no caption: fill it in, or use --labels or --images",
    "not_image": "no image, whatever its name says: look at one of them",
    "read_error": "could not be read: see its detail; once fixed, prepare into another -o",
    "too_small": "a side is shorter than --min-side",
    "truncated": _CUT,
    "unsupported_format": "SVG, HEIC, PDF or the like: convert it to PNG or JPEG",
}
"""What to do about rows that are left out, by reason."""


def summary(
    out: Path,
    classes: Sequence[ClassName],
    markers: Sequence[Marker],
    notes: Sequence[str],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """The facts of the closing table as `--json` prints them."""
    groups: dict[tuple[str, str, str], list[Marker]] = {}
    for marker in markers:
        groups.setdefault((marker["source"], marker["kind"], marker["split"]), []).append(marker)
    sources = [_line(key, of) for key, of in groups.items()]
    rejected: Counter[str] = Counter()
    for line in sources:
        rejected.update(line["rejected"])
    return {
        "schema": "unicl/prepare/1",
        "corpus": str(out),
        "rows": sum(line["rows"] for line in sources),
        "rejected": dict(sorted(rejected.items())),
        "bytes": sum(line["bytes"] for line in sources),
        "payload": sum(marker["payload"] for marker in markers),
        "payload_at_256": sum(marker["payload_at_256"] for marker in markers),
        "shards": sum(1 for marker in markers if marker["rows"]),
        "classes": len(classes),
        "sources": sources,
        "text_stats": manifest["text_stats"],
        "dedup": manifest["dedup"],
        "equal_pictures": manifest["equal_pictures"],
        "duplicates_of_eval": manifest["duplicates_of_eval"],
        "notes": [*notes, *picture_notes(manifest)],
    }


def picture_notes(manifest: Mapping[str, Any]) -> list[str]:
    """What there is to say of equal images, a line each."""
    exact, equal = manifest["dedup"]["exact"], manifest["equal_pictures"]
    notes: list[str] = []
    if exact and not exact["rows"]:
        notes.append("no two rows of a kind and split show the same image")
    elif exact:
        notes.append(
            f"{exact['rows']:,} rows show the image of another row of their kind ({exact['groups']:,} images) "
            f"and were left out; {exact['texts']:,} captions went to the rows that stay"
        )
    if exact and exact["labels_differ"]:
        kept, gone = exact["labels_differ_examples"][0]
        notes.append(f"{exact['labels_differ']:,} of them had another label than the row that stays: {gone} / {kept}")
    if equal["in_a_kind"] and not exact:
        notes.append(
            f"{equal['in_a_kind']:,} rows show the image of another row of their kind and split: "
            f"--dedup exact keeps one of each"
        )
    if equal["in_two_kinds"]:
        notes.append(f"{equal['in_two_kinds']:,} images have training rows of more than one kind: all are kept")
    notes += [
        f"{count:,} training rows show an image of the {split} split: results on it will look better than they are"
        for split, count in manifest["duplicates_of_eval"].items()
        if count
    ]
    return notes


def write_report(report: dict[str, Any], *, as_json: bool) -> None:
    """The result, on stdout."""
    lines = [json.dumps(report, ensure_ascii=False)] if as_json else list(map(plain, _table(report)))
    sys.stdout.write("\n".join(lines) + "\n")


def _line(key: tuple[str, str, str], markers: list[Marker]) -> dict[str, Any]:
    rejected: Counter[str] = Counter()
    for marker in markers:
        rejected.update(marker["rejected"])
    sides = [marker["short_side"] for marker in markers if marker["rows"]]
    return {
        "source": key[0],
        "kind": key[1],
        "split": key[2],
        "rows": sum(m["rows"] for m in markers),
        "rejected": dict(sorted(rejected.items())),
        "bytes": sum(m["bytes"] for m in markers),
        "classes": len({label for m in markers for label in m["labels"]}),
        "texts": sum(m["texts"] for m in markers),
        "animated": sum(m["animated"] for m in markers),
        "short_side": [min((s[0] for s in sides), default=0), max((s[1] for s in sides), default=0)],
    }


def _table(report: dict[str, Any]) -> list[str]:
    cells: list[tuple[str, ...]] = [_HEADER]
    for line in report["sources"]:
        low, high = line["short_side"]
        cells.append(
            (
                line["source"],
                line["kind"],
                line["split"],
                f"{line['rows']:,}",
                listed(line["rejected"]) or "0",
                decimal_size(line["bytes"]),
                str(line["classes"] or "-"),
                f"{low}-{high} px" if low != high else f"{low} px",
            )
        )
    lines = columns(cells)
    left_out = sum(report["rejected"].values())
    if left_out:
        lines += ["", f"left out: {left_out:,} rows; each is in {report['corpus']}/rejects"]
        width = max(map(len, report["rejected"]))
        lines += [f"  {reason.ljust(width)}  {REMEDIES.get(reason, '')}".rstrip() for reason in report["rejected"]]
        lines.append("")
    lines.append(
        f"{report['corpus']}: {report['rows']:,} rows, {report['classes']:,} classes, {decimal_size(report['bytes'])} "
        f"in {report['shards']:,} shards"
    )
    if report["payload_at_256"] < 0.8 * report["payload"]:
        lines.append(f"--size 256 would store about {decimal_size(report['payload_at_256'])} instead")
    return lines


def columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose cells stand below one another."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
