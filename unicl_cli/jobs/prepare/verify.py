"""The check of a corpus against what `prepare` wrote: the sha256 of every shard, its columns and sample images."""

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
from unicl_cli.data.corpus import MANIFEST, PLAN, find_damage
from unicl_cli.data.pictures import ImageError, decode
from unicl_cli.errors import UniclError

SAMPLE = 8
"""Images to decode in each shard; all were decoded when they were written."""
_LIGHT = ["key", "label", "texts", "text_hash", "source"]


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
    """An undamaged shard: 16 bytes for each key, rows by label, and how many images were decoded."""

    keys: bytes
    labels: Counter[int]
    decoded: int


class Survey(NamedTuple):
    """The shards to check: all of a corpus, or the finished ones of an unfinished corpus."""

    folder: Path
    manifest: dict[str, Any] | None
    shards: Sequence[dict[str, Any]]
    problems: list[Finding]


def survey(folder: Path) -> Survey:
    """List the shards to check. UniclError if ``folder`` is not a corpus."""
    manifest, problems = _read_manifest(folder)
    return Survey(folder, manifest, manifest["shards"] if manifest else _read_unfinished(folder), problems)


def check_shards(of: Survey, shard_done: Callable[[Mapping[str, Any]], None]) -> VerifyResult:
    """Check every shard, then the manifest against them; ``shard_done`` is called after each."""
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
        problems.append(Finding("data", f"duplicate keys: {twice:,}"))
    if manifest and not problems:
        problems += _compare_manifest(manifest, labels, folder)
    rows, size = (sum(shard[field] for shard in shards) for field in ("rows", "bytes"))
    return VerifyResult(manifest is not None, len(shards), rows, size, decoded, problems)


class _DamagedError(Exception):
    """A damaged shard; the message says what is wrong."""


def _read_manifest(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    file = folder / MANIFEST
    if not file.is_file():
        if not (folder / PLAN).is_file():
            raise UniclError(f"{folder}: not a corpus", f"prepare one with: unicl prepare --labels SRC -o {folder}")
        return None, [Finding(MANIFEST, "missing: the corpus is unfinished")]
    try:
        manifest = json.loads(file.read_bytes())
        for shard in manifest["shards"]:
            for field in ("file", "split", "kind", "rows", "bytes", "sha256", "row_groups"):
                shard[field]
        len(manifest["classes"])
    except (ValueError, KeyError, TypeError) as error:
        return None, [Finding(MANIFEST, f"damaged: {error}")]
    return manifest, []


def _read_unfinished(folder: Path) -> list[dict[str, Any]]:
    """Return the markers of an unfinished corpus that can be read and have rows."""
    shards: list[dict[str, Any]] = []
    for file in sorted(folder.glob("parts/*.json")):
        try:
            marker = json.loads(file.read_bytes())
        except ValueError:
            continue  # its shard is made again when the command continues
        if marker["rows"]:
            shards.append(marker)
    return shards


def _check_shard(folder: Path, shard: Mapping[str, Any], classes: int | None) -> _ShardContent:
    file = folder / shard["file"]
    if problem := find_damage(folder, shard):
        raise _DamagedError(problem.removeprefix(f"{file}: "))
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != shard["sha256"]:
            raise _DamagedError("its bytes have changed (different sha256)")
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
        raise _DamagedError("the numbers of texts and of their hashes differ")
    keys = (hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16) for key in table.column("key").to_pylist())
    return b"".join(key.digest() for key in keys), labels


def _sample_groups(groups: int) -> list[int]:
    """Return at most SAMPLE evenly spaced row groups, the first and the last among them."""
    return sorted({round(at * (groups - 1) / max(1, SAMPLE - 1)) for at in range(SAMPLE)}) if groups else []


def _decode_some(parquet: pq.ParquetFile, group: int) -> int:
    """Decode one image of a row group (more if there are few groups) as training does; return how many."""
    images = parquet.read_row_group(group, columns=["image"]).column("image")
    few = max(1, SAMPLE // parquet.metadata.num_row_groups)
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


def _compare_manifest(manifest: Mapping[str, Any], labels: Mapping[str, Counter[int]], folder: Path) -> list[Finding]:
    """Compare the manifest's counts with the shards, and find shard files that it does not name."""
    problems: list[Finding] = []
    if manifest["rows"] != sum(shard["rows"] for shard in manifest["shards"]):
        problems.append(Finding(MANIFEST, f"says {manifest['rows']} rows, but the shards have another total"))
    for split, counts in manifest["class_counts"].items():
        found = [labels.get(split, Counter())[number] for number in range(len(counts))]
        if found != counts:
            problems.append(Finding(MANIFEST, f"its class counts of '{split}' do not match the shards"))
    named = {shard["file"] for shard in manifest["shards"]}
    there = (file.relative_to(folder).as_posix() for file in (folder / "data").rglob("*.parquet"))
    return problems + [Finding(file, "not a shard of this corpus") for file in sorted(set(there) - named)]
