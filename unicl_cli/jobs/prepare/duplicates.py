"""Rows with equal images, byte for byte: found before any shard is written, so that shards stay independent."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.core.documents import Document, read_document
from unicl_cli.core.files import write_atomic
from unicl_cli.data import text
from unicl_cli.data.manifest import DuplicateFacts
from unicl_cli.data.shard_checks import ShardRules, read_columns
from unicl_cli.jobs.prepare.parts import PartMarker
from unicl_cli.jobs.prepare.shards import THREADS, Tick, json_bytes, row_chunks, usable_texts
from unicl_cli.jobs.prepare.units import Unit, Work

FILE = "duplicates.json"
_NO_DIGEST = bytes(32)
"""Digest of a row that is not compared: it cannot be read, or its unit rejects it unread."""
_EXAMPLES = 5


class Duplicates(NamedTuple):
    """Equal images: ``gone`` maps the key of each row left out to the row that stays, ``texts`` what it inherits."""

    gone: Mapping[str, str]
    texts: Mapping[str, Sequence[str]]
    facts: DuplicateFacts


NO_DUPLICATES = Duplicates(
    {}, {}, DuplicateFacts(groups=0, rows=0, texts=0, labels_differ=0, labels_differ_examples=[])
)


class DuplicatesFile(Document):
    """The content of FILE; see `Duplicates`."""

    facts: DuplicateFacts
    gone: dict[str, str]
    texts: dict[str, list[str]]

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        kept = set(self.gone.values())
        counted = (len(kept), len(self.gone), sum(map(len, self.texts.values())))
        if counted != (self.facts.groups, self.facts.rows, self.facts.texts):
            raise ValueError("facts: contradict the rows that are listed")
        if kept & self.gone.keys() or self.texts.keys() - kept:
            raise ValueError("gone: a row is both kept and left out, or has texts of others and is not kept")
        return self


def hash_unit(work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Write a sha256 of the image and media of each row beside the markers; None if stopped. None stays in memory."""
    digests: list[bytes] = []
    total = 0

    def one(row: Row) -> tuple[bytes, int]:
        return (_NO_DIGEST, 0) if stopped() else _hash_image(row, work, source)

    with ThreadPoolExecutor(THREADS) as threads:
        for chunk in row_chunks(work):
            done = list(threads.map(one, chunk))
            if stopped():
                return None
            digests += [digest for digest, _ in done]
            size = sum(count for _, count in done)
            total += size
            tick(len(chunk), size, {})
    write_atomic(work.out / work.unit.hashes, b"".join(digests))
    return {"rows": len(digests), "rejected": {}, "payload": total}


def units_without_digests(units: Iterable[Unit], out: Path) -> list[Unit]:
    """Return the units whose digests are missing or incomplete."""

    def size(unit: Unit) -> int:
        file = out / unit.hashes
        return file.stat().st_size if file.is_file() else -1

    return [unit for unit in units if size(unit) != 32 * unit.rows]


def remove_digests(units: Iterable[Unit], out: Path) -> None:
    """Delete the digests of the units."""
    for unit in units:
        (out / unit.hashes).unlink(missing_ok=True)


def read_duplicates(out: Path) -> Duplicates | None:
    """Read the duplicates that an earlier command found; None if it did not get that far. UniclError if damaged."""
    try:
        found = read_document(out / FILE, DuplicatesFile, f"remove {out / FILE}: `unicl prepare` makes it again")
    except FileNotFoundError:
        return None
    return Duplicates(found.gone, found.texts, found.facts)


def find_duplicates(units: Sequence[Unit], row_at: Callable[[Unit, int], Row], out: Path) -> Duplicates:
    """Compare the digests of all units and save the result in FILE; of equal rows, the plan's first one stays.

    Rows are compared within a kind and split, across all sources.
    """
    gone: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    groups, differ = 0, list[list[str]]()
    for members in _group_units(units):
        starts = np.cumsum([0, *(unit.rows for unit in members)])
        digests = np.frombuffer(b"".join((out / unit.hashes).read_bytes() for unit in members), np.uint8)
        for places in _group_equal(digests.reshape(-1, 32)):
            at = [int(np.searchsorted(starts, place, side="right")) - 1 for place in places]
            first, *rest = [row_at(members[n], int(p - starts[n])) for n, p in zip(at, places, strict=True)]
            gone.update(dict.fromkeys((row.key for row in rest), first.key))
            if more := _other_texts(first, rest):
                texts[first.key] = more
            differ += [[first.key, row.key] for row in rest if row.label_set() != first.label_set()]
            groups += 1
    facts = DuplicateFacts(
        groups=groups,
        rows=len(gone),
        texts=sum(map(len, texts.values())),
        labels_differ=len(differ),
        labels_differ_examples=differ[:_EXAMPLES],
    )
    write_atomic(out / FILE, json_bytes({"facts": facts.model_dump(), "gone": gone, "texts": texts}))
    return Duplicates(gone, texts, facts)


def count_equal_images(folder: Path, shards: Sequence[PartMarker]) -> dict[str, Any]:
    """Count equal images among the stored ones, by 64 bits of their sha256.

    ``in_a_kind``: rows that repeat an image of their kind and split; ``in_two_kinds``: training images with rows of
    several kinds; ``of_eval``: for every other split, training rows whose image is also in that split.
    """
    found: dict[tuple[str, str], list[NDArray[np.uint64]]] = {}
    for shard in shards:
        rules = ShardRules(shard.kind, 0)
        column = read_columns(folder / shard.file, shard.row_groups, ["sha256"], rules).column("sha256")
        digests = np.frombuffer(b"".join(column.to_pylist()), np.uint64)[::4]
        found.setdefault((shard.split, shard.kind), []).append(digests)
    images = {at: np.concatenate(of) for at, of in found.items()}
    training = [np.unique(of) for (split, _), of in images.items() if split == "train"]
    rows = [of for (split, _), of in images.items() if split == "train"]
    others = dict.fromkeys(split for split, _ in images if split != "train")
    return {
        "in_a_kind": sum(len(of) - len(np.unique(of)) for of in images.values()),
        "in_two_kinds": sum(map(len, training)) - len(np.unique(np.concatenate(training))) if training else 0,
        "of_eval": {
            other: sum(int(np.isin(of, _join_kinds(images, other)).sum()) for of in rows) for other in others if rows
        },
    }


def _join_kinds(images: Mapping[tuple[str, str], NDArray[np.uint64]], split: str) -> NDArray[np.uint64]:
    return np.concatenate([of for (s, _), of in images.items() if s == split])


def _hash_image(row: Row, work: Work, source: DatasetSource) -> tuple[bytes, int]:
    if usable_texts(row, work)[1]:
        return _NO_DIGEST, 0
    try:
        found = source.read(row)
        data = found["image"]
    except Exception:  # noqa: BLE001 - the same row is read again by its unit, which counts it with its reason
        return _NO_DIGEST, 0
    digest = hashlib.sha256(data)
    for kind in sorted(found.keys() - {"image"}):  # an image with another sound is another row
        digest.update(f"{kind}:{hashlib.sha256(found[kind]).hexdigest()}".encode())
    return digest.digest(), len(data)


def _group_units(units: Sequence[Unit]) -> Iterable[list[Unit]]:
    scopes: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        scopes.setdefault((unit.kind, unit.split), []).append(unit)
    return scopes.values()


def _group_equal(digests: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Yield the ascending row numbers of each group of two or more equal digests; ``digests`` is (n, 32)."""
    words = np.ascontiguousarray(digests).view(np.uint64)  # (n, 4)
    order = np.lexsort(words.T)  # stable: equal rows stay in ascending order
    ordered = words[order]
    ends = np.flatnonzero(np.append((ordered[1:] != ordered[:-1]).any(1), True)) + 1
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        if end - start > 1 and ordered[start].any():
            yield order[start:end]


def _other_texts(first: Row, rest: Sequence[Row]) -> list[str]:
    met = {text.clean(t) for t in first.texts}
    more: list[str] = []
    for other in (t for row in rest for t in row.texts):
        if (plain := text.clean(other)) not in met:
            met.add(plain)
            more.append(other)
    return more
