"""The closing report of `prepare`: the document of `--json`, and the table made of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.data.manifest import Manifest, NearFacts, NotIn, describe_survival
from unicl_cli.data.media import count_missing
from unicl_cli.data.near_images import MOST_COMPARED
from unicl_cli.errors import Remark, print_line
from unicl_cli.formats import byte_size, count_of
from unicl_cli.jobs.prepare.plan.classes import describe_empty_classes, describe_examples, format_examples
from unicl_cli.jobs.prepare.plan.plan import CorpusPlan
from unicl_cli.jobs.prepare.set_report import count_set_sizes, describe_sets, describe_sizes, format_sets
from unicl_cli.jobs.prepare.shards.left_out import LeftOut, count_rejected, describe_downloads, format_downloads
from unicl_cli.jobs.prepare.shards.parts import PartMarker
from unicl_cli.jobs.prepare.shards.shards import media_of
from unicl_cli.pages.text import align_columns, shorten, terminal_width
from unicl_cli.storage.json_output import print_json

_HEADER = ("source", "kind", "split", "rows", "left out", "size", "classes", "short side")
SOURCE_COLUMNS = 16
"""Largest width of a source's name on a terminal; longer ones lose their middle."""
_CUT = "the file is incomplete or damaged: copy or download it again"
REMEDIES = {
    "bad_answer": "the server's answer is not HTTP: see its detail",
    "bad_label": "the label cannot be read: see its detail",
    "bad_line": "the line of the list cannot be read: see its detail",
    "bad_media": "its sound, depth, heat or motion cannot be used: see its detail",
    "bad_path": "the path points outside the data set: see its detail",
    "bad_url": "not a web address: see its detail",
    "bad_text": "no usable caption (no letters, a file name, too long): --text raw keeps it",
    "bomb": "more than 250 million pixels (64 in WebP, AVIF, GIF): shrink the image first",
    "broken": _CUT,
    "dns": "no address for the host: --retry-failed tries again",
    "duplicate": "the same image as a row that is kept (--dedup)",
    "empty": "the file is empty: copy or download it again",
    "encoded": "the server compressed the image again",
    "in_other_corpus": "its image is in a corpus of --not-in, exactly or nearly: see its detail",
    "media_too_large": "a media item is larger than 64 MB: shorten or compress it",
    "missing_file": "the file does not exist: paths are relative to the list, or to its root=",
    "near_duplicate": "nearly the same image as a row that is kept (--dedup near)",
    "no_label": "no class: move it into a class folder, or fill in its label",
    "no_resources": "no thread or memory was left for it: --retry-failed tries again",
    "no_text": "no caption: fill it in, or use --labels or --images",
    "not_compared": "another image than when duplicates were searched for: --retry-failed tries again",
    "not_image": "not an image, whatever its name: open one to see what it is",
    "private_address": "an address of this network: --allow-private downloads from it",
    "read_error": "could not be read: see its detail, fix it, prepare into another -o",
    "refused": "nothing answers there",
    "reset": "the connection broke: --retry-failed tries again",
    "robots": "its server asks not to train on it (X-Robots-Tag)",
    "short_body": "the answer was cut off: --retry-failed tries again",
    "timeout": "no answer in time: --retry-failed tries again",
    "tls": "the server's certificate is not valid: see its detail",
    "too_costly": "takes far more work than its pixels need: save it again with another program",
    "too_large": "larger than 512 MB, or than 10 MB at a URL: shrink the image first",
    "too_many_redirects": "more than five redirects",
    "too_small": "a side is shorter than --min-side",
    "truncated": _CUT,
    "unsupported_format": "SVG, HEIC, PDF or similar: convert it to PNG or JPEG",
}
"""Advice about rejected rows, by reason."""


def write_summary(out: Path, plan: CorpusPlan, markers: Sequence[PartMarker], manifest: Manifest) -> dict[str, Any]:
    """Return the facts of the closing table as `--json` prints them."""
    groups: dict[tuple[str, str, str], list[PartMarker]] = {}
    for marker in markers:
        groups.setdefault((marker.source, marker.kind, marker.split), []).append(marker)
    kinds = {planned.spec.name: media_of(planned.source) for planned in plan.sources}
    sources = [_summarize_group(key, of, kinds[key[0]]) for key, of in groups.items()]
    left_out = LeftOut(out, markers)
    stored = plan.stored_images(left_out)
    lost = describe_empty_classes(
        plan.classes, stored.empty - plan.images.empty, "classes whose images are all left out"
    )
    return {
        "schema": "unicl/prepare/1",
        "corpus": str(out),
        "rows": sum(line["rows"] for line in sources),
        "rejected": count_rejected(markers),
        "bytes": sum(line["bytes"] for line in sources),
        "payload": sum(marker.payload for marker in markers),
        "payload_at_256": sum(marker.payload_at_256 for marker in markers),
        "shards": sum(1 for marker in markers if marker.rows),
        "classes": len(plan.classes),
        "classes_without_images": len(stored.empty),
        "class_examples": describe_examples(stored.examples),
        **describe_sets(plan.groups, count_set_sizes(markers)),
        "sources": sources,
        **(describe_downloads(out, markers, left_out) if any(of.has_urls for of in plan.sources) else {}),
        **manifest.model_dump(include={"text_stats", "dedup", "equal_pictures", "duplicates_of_eval"}),
        **({"survival": manifest.model_dump(include={"survival"})["survival"]} if manifest.survival else {}),
        **({"not_in": [of.model_dump() for of in manifest.not_in]} if manifest.not_in else {}),
        "notes": [*plan.notes, *lost, *_note_lost_media(sources), *image_notes(manifest)],
    }


def image_notes(manifest: Manifest) -> list[str]:
    """Return notes on equal images, a line each."""
    equal = manifest.equal_pictures
    notes = [*_dedup_notes(manifest), *map(_describe_not_in, manifest.not_in)]
    if equal and equal.in_a_kind and not manifest.dedup.facts:
        rows = count_of(equal.in_a_kind, "duplicate row")
        same = " if their media are the same, too" if "media" in (manifest.model_extra or {}) else ""
        notes.append(f"{rows} (same image, kind and split): --dedup exact leaves them out{same}")
    if equal and equal.in_two_kinds:
        images = count_of(equal.in_two_kinds, "image")
        notes.append(Remark(f"{images} in training rows of more than one kind (all kept)"))
    other = "" if manifest.dedup.near else ", or leave them out of training with --dedup near"
    notes += [
        f"{count_of(count, 'training row')} with an image of the {split} split: results on {split} will look too good; "
        f"give each image the same split in every source{other}"
        for split, count in manifest.duplicates_of_eval.items()
        if count
    ]
    return notes


def _dedup_notes(manifest: Manifest) -> Iterator[str]:
    """Yield notes on the rows that `--dedup` left out."""
    found, near = manifest.dedup.facts, manifest.dedup.near
    if found is None:
        return
    if not found.rows:
        yield Remark(f"no {'near ' if near else ''}duplicate images within a kind and split")
    else:
        nearly = f" ({near.equal:,} the same byte for byte)" if near else ""
        left_out = f"left out {count_of(found.rows, 'duplicate row')}{nearly} of {count_of(found.groups, 'image')}"
        yield Remark(f"{left_out}, and moved {count_of(found.texts, 'caption')} to the rows kept")
    if found.labels_differ_examples:
        kept, gone = found.labels_differ_examples[0]
        yield (
            f"{found.labels_differ:,} of these had another label than the row kept, for example {gone} (kept: {kept})"
        )
    if near:
        yield from _near_notes(near)


def _near_notes(near: NearFacts) -> Iterator[str]:
    for split, count in near.leaks.items():
        if count:
            rows = f"{count_of(count, 'training row')} whose image is in the {split} split, exactly or nearly"
            yield Remark(f"of these, {rows}: their captions are left out, too")
    if near.flat:
        yield Remark(f"{count_of(near.flat, 'image')} of one colour compared byte for byte only")
    for split, count in near.also_in_train.items():
        if count:
            yield (
                f"{count_of(count, 'row')} of the {split} split nearly equal to a training row in a finished "
                f"shard: results on {split} will look too good; to leave these out of training, prepare into another -o"
            )
    if near.crowded:
        yield (
            f"{count_of(near.crowded, 'image')} compared with only {MOST_COMPARED:,} of their candidates: some near "
            "duplicates may remain"
        )


def _describe_not_in(found: NotIn) -> str:
    split = f", split {found.split}" if found.split else ""
    rows = count_of(found.same + found.near, "row")
    return Remark(
        f"left out {rows} whose image is in {found.name}{split} (--not-in): {found.same:,} the same, "
        f"{found.near:,} nearly"
    )


def write_report(report: dict[str, Any], *, as_json: bool) -> None:
    """Write the report to stdout."""
    if as_json:
        print_json(report)
    else:
        for line in _format_table(report):
            print_line(line)


def _summarize_group(key: tuple[str, str, str], markers: list[PartMarker], media: Sequence[str]) -> dict[str, Any]:
    rows = sum(m.rows for m in markers)
    with_media = {kind: sum(m.media.get(kind, 0) for m in markers) for kind in media}
    sides = [marker.short_side for marker in markers if marker.rows]
    return {
        "source": key[0],
        "kind": key[1],
        "split": key[2],
        "rows": rows,
        "rejected": count_rejected(markers),
        "bytes": sum(m.bytes for m in markers),
        "classes": len({label for m in markers for label in m.labels}),
        **describe_sizes(count_set_sizes(markers)),
        "texts": sum(m.texts for m in markers),
        "animated": sum(m.animated for m in markers),
        **({"media": {kind: count_missing(n, rows) for kind, n in with_media.items()}} if media else {}),
        "short_side": [min((s[0] for s in sides), default=0), max((s[1] for s in sides), default=0)],
    }


def _note_lost_media(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on kinds of media that no row of a source has: nothing can be learned from them."""
    rows: Counter[tuple[str, str]] = Counter()
    rejected: Counter[str] = Counter()
    for line in sources:
        rejected[line["source"]] += sum(line["rejected"].values())
        for kind, found in line.get("media", {}).items():
            rows[line["source"], kind] += found["rows"]
    return [
        f"{source}: no row has {kind}: {'see the rejects' if rejected[source] else 'the list holds no item of it'}"
        for (source, kind), count in rows.items()
        if not count
    ]


def _format_media(report: dict[str, Any]) -> list[str]:
    """Return a line for each source, kind and split with media: the rows that have each, and those that lack it."""
    lines: list[str] = []
    for line in report["sources"]:
        counts = [
            f"{kind} in {found['rows']:,} rows" + (f" (missing in {found['missing']:,})" if found["missing"] else "")
            for kind, found in line.get("media", {}).items()
        ]
        if counts:
            lines.append(f"media of {line['source']} {line['kind']} {line['split']}: {', '.join(counts)}")
    return lines


def _format_table(report: dict[str, Any]) -> list[str]:
    width = terminal_width()
    cells: list[tuple[str, ...]] = [_HEADER]
    for line in report["sources"]:
        low, high = line["short_side"]
        cells.append(
            (
                line["source"] if width is None else shorten(line["source"], SOURCE_COLUMNS),
                line["kind"],
                line["split"],
                f"{line['rows']:,}",
                f"{sum(line['rejected'].values()):,}",
                byte_size(line["bytes"]),
                f"{line['classes']:,}" if line["classes"] else "-",
                f"{low:,}-{high:,} px" if low != high else f"{low:,} px",
            )
        )
    lines = [*align_columns(cells), *_format_media(report), *format_examples(report), *format_sets(report)]
    rejected = sum(report["rejected"].values())
    if rejected:
        lines += ["", f"left out: {count_of(rejected, 'row')}, listed in {report['corpus']}/rejects"]
        lines += align_columns(
            [[f"  {reason}", f"{n:,}", REMEDIES.get(reason, "")] for reason, n in report["rejected"].items()], width
        )
        lines.append("")
    lines += format_downloads(report)
    lines += [f"{name}: {describe_survival({name: found})}" for name, found in report.get("survival", {}).items()]
    empty = report["classes_without_images"]
    classes = count_of(report["classes"], "class") + (f" ({empty:,} without an image)" if empty else "")
    lines.append(
        f"{report['corpus']}: {count_of(report['rows'], 'row')}, {classes}, "
        f"{byte_size(report['bytes'])} in {count_of(report['shards'], 'shard')}"
    )
    if report["payload_at_256"] < 0.8 * report["payload"]:
        lines.append(f"with --size 256 the images would take about {byte_size(report['payload_at_256'])}")
    return lines
