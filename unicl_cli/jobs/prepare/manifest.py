"""The manifest of a corpus, built from the plan and the markers of its units, and compared with them later."""

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from unicl_cli.contracts import ClassName
from unicl_cli.data.manifest import SETS_VERSION, DuplicateFacts, Manifest
from unicl_cli.jobs.prepare.plan.plan import hash_classes
from unicl_cli.jobs.prepare.plan_file import PlanFile
from unicl_cli.jobs.prepare.shards.left_out import count_rejected
from unicl_cli.jobs.prepare.shards.not_in import count_found
from unicl_cli.jobs.prepare.shards.parts import PartMarker


def fold_manifest(
    plan: PlanFile,
    classes: Sequence[ClassName],
    markers: Sequence[PartMarker],
    *,
    name: str,
    dedup: DuplicateFacts | None,
    repeated: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the manifest from the plan and the markers in unit order, so that it can be rebuilt at any time.

    ``dedup`` describes the rows that `--dedup` left out; ``repeated`` counts the equal images that are stored.
    """
    counts: dict[str, list[int]] = {}
    for marker in markers:
        if marker.labels:
            of_split = counts.setdefault(marker.split, [0] * len(classes))
            for label, count in marker.labels.items():
                of_split[int(label)] += count
    shards = [marker for marker in markers if marker.rows]
    described = ("file", "split", "source", "kind", "rows", "bytes", "sha256", "row_groups")
    identity = {field: value for field, value in plan.document().items() if field != "versions"}
    return {
        "schema_version": plan.schema_version,
        "name": name,
        "license": None,
        "sources": [
            {"name": source.name, "kinds": [source.kind], "path": source.src, "sha256": source.fingerprint}
            for source in plan.sources
        ],
        "created_by": plan.versions,
        "plan_sha256": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        "rows": sum(m.rows for m in shards),
        "rows_labelled": sum(m.rows for m in shards if m.kind == "labels"),
        "rows_captioned": sum(m.captioned for m in shards),
        "rejected": count_rejected(markers),
        "bytes": sum(m.bytes for m in shards),
        "shards": [{field: getattr(marker, field) for field in described} for marker in shards],
        "classes": [
            {"id": number, "key": c.key, "names": list(c.names), "prompt_name": c.names[0], **_describe_place(c)}
            for number, c in enumerate(classes)
        ],
        "class_counts": counts,
        "templates": plan.templates,
        "text_stats": _text_stats(markers),
        "image": {"policy": "original" if plan.size is None else "short side", "size": plan.size, "quality": 90},
        "dedup": {
            name: dedup.model_dump(exclude_unset=True) if dedup and plan.dedup == name else None
            for name in ("exact", "near")
        },
        "equal_pictures": {"in_a_kind": repeated["in_a_kind"], "in_two_kinds": repeated["in_two_kinds"]},
        "duplicates_of_eval": repeated["of_eval"],
        "permuted_seed": plan.seed,
        **_not_in(plan, markers),
        **_media(markers),
        **_set_sizes(plan, markers),
        **_survival(plan, markers),
    }


def find_contradictions(
    manifest: Manifest,
    plan: PlanFile,
    markers: Sequence[PartMarker],
    *,
    dedup: DuplicateFacts | None,
    repeated: Mapping[str, Any],
) -> list[str]:
    """Return each fact of a manifest that is not the one which plan and markers give, as `FACT: what is wrong`.

    The name is free, since a corpus may be moved. Facts that a manifest of an older version lacks are not compared.
    """
    classes = [ClassName(c.key, tuple(c.names), c.group, c.parent) for c in manifest.classes]
    if hash_classes(classes) != plan.classes:
        return ["classes: are not those of plan.json"]
    expected = fold_manifest(plan, classes, markers, name=manifest.name, dedup=dedup, repeated=repeated)
    stored = manifest.model_dump(exclude_unset=True)
    different = [fact for fact in expected if fact in stored and stored[fact] != expected[fact]]
    return [f"{fact}: does not follow from plan.json and parts" for fact in different]


def _media(markers: Sequence[PartMarker]) -> dict[str, dict[str, int]]:
    """Return the rows that have each kind of media, under the key ``media``; nothing for a corpus without media."""
    rows: Counter[str] = Counter()
    for marker in markers:
        rows.update(marker.media)
    return {"media": dict(sorted(rows.items()))} if rows else {}


def _not_in(plan: PlanFile, markers: Sequence[PartMarker]) -> dict[str, Any]:
    """Return the corpora of `--not-in` with what they left out, under ``not_in``; nothing without the option."""
    planned = [other.model_dump() for other in plan.not_in]
    found = count_found(planned, [marker.model_dump()["not_in"] for marker in markers])
    return {"not_in": [of.model_dump() for of in found]} if found else {}


def _describe_place(c: ClassName) -> dict[str, str]:
    """Return the group and the parent of a class, where it has them."""
    return {name: value for name, value in (("group", c.group), ("parent", c.parent)) if value}


def _set_sizes(plan: PlanFile, markers: Sequence[PartMarker]) -> dict[str, dict[str, int]]:
    """Return the rows by their number of labels, under ``set_sizes``; nothing for a corpus without label sets."""
    if plan.schema_version != SETS_VERSION:
        return {}
    rows: Counter[int] = Counter()
    for marker in markers:
        rows.update({int(count): times for count, times in (marker.set_sizes or {}).items()})
    return {"set_sizes": {str(count): times for count, times in sorted(rows.items())}}


def _survival(plan: PlanFile, markers: Sequence[PartMarker]) -> dict[str, dict[str, dict[str, int]]]:
    """Return the listed and the stored rows of each source with URLs, under ``survival``; nothing without such."""
    kept: Counter[str] = Counter()
    for marker in markers:
        kept[marker.source] += marker.rows
    remote = {marker.source for marker in markers if marker.urls}
    found = {
        source.name: {"listed": sum(source.rows.values()), "kept": kept[source.name]}
        for source in plan.sources
        if source.name in remote
    }
    return {"survival": found} if found else {}


def _text_stats(markers: Sequence[PartMarker]) -> dict[str, Any]:
    """Return statistics of words per stored caption, split at white space; percentiles by the nearest rank."""
    words: Counter[int] = Counter()
    for marker in markers:
        words.update({int(count): times for count, times in marker.words.items()})
    total, lengths = words.total(), sorted(words)
    ends = list(accumulate(words[length] for length in lengths))

    def rank(share: float) -> int:
        return lengths[bisect_left(ends, share * total)] if total else 0

    return {"unit": "words", "texts": total, "p50": rank(0.5), "p95": rank(0.95), "max": rank(1)}
