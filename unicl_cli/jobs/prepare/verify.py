"""The check of a corpus against what `prepare` recorded: plan, markers, manifest, sha256 and rows of every shard."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli.contracts import NO_LABEL, ClassName
from unicl_cli.core.class_groups import label_sets_of
from unicl_cli.data.corpus import find_damage
from unicl_cli.data.corpus_format import KNOWN, LABELS, MEDIA, SCHEMA
from unicl_cli.data.manifest import MANIFEST, PLAN, SETS_VERSION, Manifest, Shard, read_manifest
from unicl_cli.data.pictures import ImageError, decode
from unicl_cli.data.shard_checks import ShardRules, open_shard, read_group
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.manifest import find_contradictions
from unicl_cli.jobs.prepare.plan import duplicates
from unicl_cli.jobs.prepare.plan_file import PlanFile, read_plan
from unicl_cli.jobs.prepare.shards.parts import PartMarker, read_marker
from unicl_cli.storage.files import open_copy

SAMPLE = 8
"""Images to decode in each shard; all were decoded when they were written."""
_ANY_CLASSES = 2**31
"""The bound of labels where no manifest says how many classes there are: an unfinished corpus."""
UNFINISHED = "missing: the corpus is unfinished"
Written = Shard | PartMarker


class Finding(NamedTuple):
    """A file of the corpus, by its path inside, and what is wrong with it."""

    file: str
    problem: str


class VerifyResult(NamedTuple):
    """The outcome of a check; ``shards, rows, bytes`` count what was checked, damaged or not."""

    finished: bool
    shards: int
    rows: int
    bytes: int
    decoded: int
    problems: list[Finding]


class _ShardContent(NamedTuple):
    """An undamaged shard: 16 bytes for each key, counts of its rows, and how many images were decoded."""

    keys: bytes
    labels: Counter[int]
    captioned: int
    texts: int
    decoded: int


class Survey(NamedTuple):
    """Shards to check: all shards of a corpus, or the finished ones of an unfinished corpus."""

    folder: Path
    manifest: Manifest | None
    plan: PlanFile | None
    markers: dict[str, PartMarker]
    """The sound markers by the shard that they name."""
    shards: Sequence[Written]
    problems: list[Finding]


def survey(folder: Path) -> Survey:
    """Read manifest, plan and markers, and list the shards to check. UniclError if ``folder`` is not a corpus."""
    problems: list[Finding] = []
    manifest = plan = None
    if not (folder / MANIFEST).exists() and not (folder / PLAN).exists():
        raise UniclError(f"{folder}: not a corpus", f"prepare one with: unicl prepare --labels SRC -o {folder}")
    if (folder / MANIFEST).exists():
        try:
            manifest, _ = read_manifest(folder)
        except UniclError as error:
            problems.append(_finding(folder, MANIFEST, error))
    else:
        problems.append(Finding(MANIFEST, UNFINISHED))
    try:
        plan = read_plan(folder)
    except UniclError as error:
        problems.append(_finding(folder, PLAN, error))
    markers = _read_markers(folder, manifest, plan, problems)
    shards = manifest.shards if manifest else [marker for marker in markers.values() if marker.rows]
    return Survey(folder, manifest, plan, markers, shards, problems)


def check_shards(of: Survey, shard_done: Callable[[Written], None]) -> VerifyResult:
    """Check every shard, then the manifest against them; ``shard_done`` is called after each."""
    folder, manifest, shards = of.folder, of.manifest, of.shards
    problems = list(of.problems)
    digests: list[bytes] = []
    decoded = 0
    rules = _rules_of(manifest, of.plan)
    labels: dict[str, Counter[int]] = {}
    for shard in shards:
        try:
            found = _check_shard(folder, shard, rules._replace(kind=shard.kind))
            _compare_marker(found, of.markers.get(shard.file))
        except _DamagedError as error:
            problems.append(Finding(shard.file, str(error)))
        else:
            digests.append(found.keys)
            labels.setdefault(shard.split, Counter()).update(found.labels)
            decoded += found.decoded
        shard_done(shard)
    if twice := _count_repeated(digests):
        problems.append(Finding("data", f"duplicate keys: {twice:,}"))
    if manifest and not problems:
        problems += _compare_counts(manifest, labels) + _compare_files(manifest, folder)
    if manifest and of.plan and not problems:
        problems += _compare_manifest(manifest, of.plan, of)
    rows, size = sum(shard.rows for shard in shards), sum(shard.bytes for shard in shards)
    return VerifyResult(manifest is not None, len(shards), rows, size, decoded, problems)


class _DamagedError(Exception):
    """A damaged shard; the message says what is wrong."""


def _finding(folder: Path, file: str, error: UniclError) -> Finding:
    return Finding(file, error.message.removeprefix(f"{folder / file}: "))


def _read_markers(
    folder: Path, manifest: Manifest | None, plan: PlanFile | None, problems: list[Finding]
) -> dict[str, PartMarker]:
    """Read the markers of the plan's units; add to ``problems`` those that are damaged, or missing when finished."""
    markers: dict[str, PartMarker] = {}
    classes = len(manifest.classes) if manifest else _ANY_CLASSES
    for unit in plan.all_units() if plan else ():
        try:
            marker = read_marker(folder, unit, classes)
        except UniclError as error:
            problems.append(_finding(folder, unit.marker, error))
            continue
        if marker:
            markers[unit.shard] = marker
        elif manifest:
            problems.append(Finding(unit.marker, "marker is missing"))
    return markers


def _rules_of(manifest: Manifest | None, plan: PlanFile | None) -> ShardRules:
    """Return the rules for the shards of a corpus, whose kind is not set yet."""
    has_sets = manifest.has_sets if manifest else plan is not None and plan.schema_version == SETS_VERSION
    if manifest is None:
        return ShardRules("", _ANY_CLASSES, () if has_sets else None)
    classes = [ClassName(c.key, tuple(c.names), c.group, c.parent) for c in manifest.classes]
    return ShardRules("", len(classes), label_sets_of(classes, 1).groups if has_sets else None)


def _check_shard(folder: Path, shard: Written, rules: ShardRules) -> _ShardContent:
    file = folder / shard.file
    if problem := find_damage(folder, shard.file, shard.bytes):
        raise _DamagedError(problem.removeprefix(f"{file}: "))
    try:
        with open_copy(file) as copy:
            return _check_content(copy, shard, rules)
    except (pa.ArrowException, OSError) as error:
        raise _DamagedError(f"cannot be read: {' '.join(str(error).split())}") from error


def _check_content(file: Path, shard: Written, rules: ShardRules) -> _ShardContent:
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != shard.sha256:
            raise _DamagedError("its bytes have changed (different sha256)")
    try:
        with open_shard(file, shard.row_groups) as parquet:
            return _check_groups(parquet, file, shard, rules)
    except UniclError as error:
        raise _DamagedError(error.message.removeprefix(f"{file}: damaged: ")) from error


def _check_groups(parquet: pq.ParquetFile, file: Path, shard: Written, rules: ShardRules) -> _ShardContent:
    """Read every column of every row group, check its rows, and decode some of its images."""
    sets = [LABELS, KNOWN] if rules.groups is not None else []
    columns = [*SCHEMA.names, *sets, *([MEDIA] if MEDIA in parquet.schema_arrow.names else [])]
    few = max(1, SAMPLE // len(shard.row_groups))
    sampled = _sample_groups(len(shard.row_groups))
    labels: Counter[int] = Counter()
    keys: list[bytes] = []
    captioned = texts = decoded = 0
    for group in range(len(shard.row_groups)):
        table = read_group(parquet, file, group, columns, rules)
        keys += [_digest_key(key, shard.source, group) for key in table.column("key").to_pylist()]
        if table.column("source").unique().to_pylist() != [shard.source]:
            raise _DamagedError(f"row group {group}: its source is not {shard.source}")
        labels.update(table.column(LABELS).combine_chunks().flatten().to_pylist() if sets else _labels_in(table))
        counts = [len(of) for of in table.column("text_hash").to_pylist()]
        captioned, texts = captioned + sum(map(bool, counts)), texts + sum(counts)
        if group in sampled:
            decoded += _decode_some(table.column("image"), group, few)
    return _ShardContent(b"".join(keys), labels, captioned, texts, decoded)


def _labels_in(table: Any) -> Iterator[int]:
    return (label for label in table.column("label").to_pylist() if label != NO_LABEL)


def _digest_key(key: str, source: str, group: int) -> bytes:
    if not key.startswith(f"{source}:"):
        raise _DamagedError(f"row group {group}: key '{key}' is not one of source {source}")
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16).digest()


def _compare_marker(found: _ShardContent, marker: PartMarker | None) -> None:
    """Raise _DamagedError if the rows of a shard are not those that its marker counts."""
    if marker is None:
        return
    labels = {str(label): count for label, count in found.labels.items()}
    for name, of_shard in (("labels", labels), ("captioned", found.captioned), ("texts", found.texts)):
        if of_shard != getattr(marker, name):
            raise _DamagedError(f"its {name} are not those that its marker in parts counts")


def _sample_groups(groups: int) -> list[int]:
    """Return at most SAMPLE evenly spaced row groups, the first and the last among them."""
    return sorted({round(at * (groups - 1) / max(1, SAMPLE - 1)) for at in range(SAMPLE)}) if groups else []


def _decode_some(images: Any, group: int, few: int) -> int:
    """Decode ``few`` images of a row group as training does; return how many."""
    rows = sorted({at * len(images) // few for at in range(few)})
    for at in rows:
        try:
            decode(images[at].as_py()["bytes"])
        except ImageError as error:
            raise _DamagedError(f"row {at} of row group {group}: the image cannot be decoded: {error}") from error
    return len(rows)


def _count_repeated(digests: Sequence[bytes]) -> int:
    keys = np.frombuffer(b"".join(digests), "S16")
    return len(keys) - len(np.unique(keys))


def _compare_counts(manifest: Manifest, labels: dict[str, Counter[int]]) -> list[Finding]:
    """Compare the manifest's counts of classes with the labels in the shards."""
    problems: list[Finding] = []
    for split, found in labels.items():
        counts = [found[number] for number in range(len(manifest.classes))]
        if any(counts) and manifest.class_counts.get(split) != counts:
            problems.append(Finding(MANIFEST, f"its class counts of '{split}' do not match the shards"))
    return problems


def _compare_files(manifest: Manifest, folder: Path) -> list[Finding]:
    """Find shard files that the manifest does not name."""
    named = {shard.file for shard in manifest.shards}
    there = ("/".join(file.parts[len(folder.parts) :]) for file in (folder / "data").rglob("*.parquet"))
    return [Finding(file, "not a shard of this corpus") for file in sorted(set(there) - named)]


def _compare_manifest(manifest: Manifest, plan: PlanFile, of: Survey) -> list[Finding]:
    """Find the facts of the manifest that do not follow from plan, markers and shards, all of which are sound."""
    markers = [of.markers[unit.shard] for unit in plan.all_units()]
    try:
        found = duplicates.read_duplicates(of.folder) if plan.dedup != "off" else None
    except UniclError as error:
        return [_finding(of.folder, duplicates.FILE, error)]
    repeated = duplicates.count_equal_images(of.folder, [marker for marker in markers if marker.rows])
    problems = find_contradictions(manifest, plan, markers, dedup=found.facts if found else None, repeated=repeated)
    return [Finding(MANIFEST, problem) for problem in problems]
