"""Whether a corpus still is what `prepare` wrote: every byte by its sha256, and what the bytes say."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.corpus import MANIFEST, PLAN, damage
from unicl_cli.data.pictures import PictureError, decode
from unicl_cli.errors import UniclError

SAMPLE = 8
"""Images of each shard that are decoded; all of them were when they were written."""
_LIGHT = ["key", "label", "texts", "text_hash", "source"]


class Finding(NamedTuple):
    """What is wrong with a file of the corpus, named by its path inside."""

    file: str
    problem: str


class VerifyResult(NamedTuple):
    """``shards, rows, bytes`` count what was looked at, damaged or not."""

    finished: bool
    shards: int
    rows: int
    bytes: int
    decoded: int
    problems: list[Finding]


class _ShardContent(NamedTuple):
    """What one whole shard says: 16 bytes for each key, and rows by label."""

    keys: bytes
    labels: Counter[int]
    decoded: int


class Survey(NamedTuple):
    """What there is to look at: all shards of a corpus, or those of an unfinished one that are written."""

    folder: Path
    manifest: dict[str, Any] | None
    shards: Sequence[dict[str, Any]]
    problems: list[Finding]


def survey(folder: Path) -> Survey:
    """UniclError if no corpus is there."""
    manifest, problems = _read_manifest(folder)
    return Survey(folder, manifest, manifest["shards"] if manifest else _read_markers(folder), problems)


def check_shards(of: Survey, shard_done: Callable[[Mapping[str, Any]], None]) -> VerifyResult:
    """Look at every shard."""
    folder, manifest, shards = of.folder, of.manifest, of.shards
    problems = list(of.problems)
    digests: list[bytes] = []
    labels: dict[str, Counter[int]] = {}
    decoded = 0
    for shard in shards:
        try:
            said = _check_shard(folder, shard, len(manifest["classes"]) if manifest else None)
        except _DamagedError as error:
            problems.append(Finding(shard["file"], str(error)))
        else:
            digests.append(said.keys)
            labels.setdefault(shard["split"], Counter()).update(said.labels)
            decoded += said.decoded
        shard_done(shard)
    if twice := _count_repeated(digests):
        problems.append(Finding("data", f"{twice:,} keys stand there twice"))
    if manifest and not problems:
        problems += _compare_manifest(manifest, labels, folder)
    rows, size = (sum(shard[field] for shard in shards) for field in ("rows", "bytes"))
    return VerifyResult(manifest is not None, len(shards), rows, size, decoded, problems)


class _DamagedError(Exception):
    """Says what is wrong with a shard."""


def _read_manifest(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    file = folder / MANIFEST
    if not file.is_file():
        if not (folder / PLAN).is_file():
            raise UniclError(f"{folder}: no corpus here", f"make one: unicl prepare --labels SRC -o {folder}")
        return None, [Finding(MANIFEST, "is missing: the corpus is unfinished")]
    try:
        manifest = json.loads(file.read_bytes())
        for shard in manifest["shards"]:
            for field in ("file", "split", "kind", "rows", "bytes", "sha256", "row_groups"):
                shard[field]
        len(manifest["classes"])
    except (ValueError, KeyError, TypeError) as error:
        return None, [Finding(MANIFEST, f"is damaged: {error}")]
    return manifest, []


def _read_markers(folder: Path) -> list[dict[str, Any]]:
    """Shards of an unfinished corpus that have a readable marker."""
    shards: list[dict[str, Any]] = []
    for file in sorted(folder.glob("parts/*.json")):
        try:
            marker = json.loads(file.read_bytes())
        except ValueError:
            continue  # its shard is made again when the command goes on
        if marker["rows"]:
            shards.append(marker)
    return shards


def _check_shard(folder: Path, shard: Mapping[str, Any], classes: int | None) -> _ShardContent:
    file = folder / shard["file"]
    if problem := damage(folder, shard):
        raise _DamagedError(problem.removeprefix(f"{file}: "))
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != shard["sha256"]:
            raise _DamagedError("its bytes have changed: another sha256")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            table = parquet.read(columns=_LIGHT)
            decoded = sum(_decode_some(parquet, group) for group in _sample_groups(len(groups)))
    except (pa.ArrowException, OSError) as error:
        raise _DamagedError(f"cannot be read: {' '.join(str(error).split())}") from error
    if (metadata.num_rows, groups) != (shard["rows"], shard["row_groups"]):
        raise _DamagedError(f"has {metadata.num_rows} rows instead of {shard['rows']}")
    return _ShardContent(*_check_columns(table, shard, classes), decoded)


def _check_columns(table: Any, shard: Mapping[str, Any], classes: int | None) -> tuple[bytes, Counter[int]]:
    labels = Counter[int](table.column("label").to_pylist())
    if shard["kind"] != "labels":
        wrong = [label for label in labels if label != NO_LABEL]
    else:
        wrong = [label for label in labels if label < 0 or (classes is not None and label >= classes)]
    if wrong:
        raise _DamagedError(f"label {wrong[0]} is out of range")
    if any(
        len(a) != len(b) for a, b in zip(*(table.column(c).to_pylist() for c in ("texts", "text_hash")), strict=True)
    ):
        raise _DamagedError("texts and their hashes differ in number")
    keys = (hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16) for key in table.column("key").to_pylist())
    return b"".join(key.digest() for key in keys), labels


def _sample_groups(groups: int) -> list[int]:
    """At most SAMPLE row groups, the first and the last among them."""
    return sorted({round(at * (groups - 1) / max(1, SAMPLE - 1)) for at in range(SAMPLE)}) if groups else []


def _decode_some(parquet: pq.ParquetFile, group: int) -> int:
    """Decode one image of a row group (or more, where there are few groups) as training does."""
    images = parquet.read_row_group(group, columns=["image"]).column("image")
    few = max(1, SAMPLE // parquet.metadata.num_row_groups)
    rows = sorted({at * len(images) // few for at in range(few)})
    for at in rows:
        try:
            decode(images[at].as_py()["bytes"])
        except PictureError as error:
            raise _DamagedError(f"row {at} of row group {group}: image cannot be decoded: {error}") from error
    return len(rows)


def _count_repeated(digests: Sequence[bytes]) -> int:
    keys = np.frombuffer(b"".join(digests), "S16")
    return len(keys) - len(np.unique(keys))


def _compare_manifest(manifest: Mapping[str, Any], labels: Mapping[str, Counter[int]], folder: Path) -> list[Finding]:
    """Sums of the manifest against what the shards hold, and shards that it does not name."""
    problems: list[Finding] = []
    if manifest["rows"] != sum(shard["rows"] for shard in manifest["shards"]):
        problems.append(Finding(MANIFEST, f"says {manifest['rows']} rows, its shards have another sum"))
    for split, counts in manifest["class_counts"].items():
        found = [labels.get(split, Counter())[number] for number in range(len(counts))]
        if found != counts:
            problems.append(Finding(MANIFEST, f"counts of the classes in '{split}' are not those of the shards"))
    named = {shard["file"] for shard in manifest["shards"]}
    there = (file.relative_to(folder).as_posix() for file in (folder / "data").rglob("*.parquet"))
    return problems + [Finding(file, "is no shard of this corpus") for file in sorted(set(there) - named)]
