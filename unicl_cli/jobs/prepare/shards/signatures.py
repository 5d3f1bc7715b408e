"""The digest and the signature of each row, written beside its unit's marker before images are compared."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.data.near_images import are_flat, as_hash, make_thumbnail
from unicl_cli.data.pictures import ImageError, decode, examine
from unicl_cli.jobs.prepare.shards.prepared_row import PreparedRow, Rejected
from unicl_cli.jobs.prepare.shards.scopes import COMPARABLE, FLAT_IMAGE, SIGNATURE
from unicl_cli.jobs.prepare.shards.shards import THREADS, RowTools, Tick, prepare_rows, row_chunks, usable_texts
from unicl_cli.jobs.prepare.shards.staged import NO_DIGEST, digest_of, write_staged
from unicl_cli.jobs.prepare.shards.units import PARTS, Unit, Work
from unicl_cli.storage.files import list_names, write_atomic


def hash_unit(work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Write a sha256 of the image and media of each row beside the markers; None if stopped. None stays in memory.

    For `--dedup near` a signature of each image is written, too.
    """
    signed: list[_Signed] = []
    total = 0
    tools = RowTools(source, work)

    def one(row: Row) -> _Signed:
        return _UNSIGNED if stopped() else _sign_row(row, tools)

    with ThreadPoolExecutor(THREADS) as threads:
        for chunk in row_chunks(work):
            done = list(threads.map(one, chunk))
            if stopped():
                return None
            signed += done
            size = sum(item.size for item in done)
            total += size
            tick(len(chunk), size, {})
    _write_signed(work, signed)
    return {"rows": len(signed), "rejected": {}, "payload": total}


def stage_unit(work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Download the images of a unit, and keep its rows beside the markers with their digests; None if stopped.

    The file of the rows is the last one to be written.
    """
    signed: list[_Signed] = []
    rejected: Counter[str] = Counter()

    def sign(results: Iterator[PreparedRow | Rejected | None]) -> Iterator[PreparedRow | Rejected | None]:
        for result in results:
            if result is None:
                yield None
                return
            if isinstance(result, Rejected):
                rejected[result.reason] += 1
            signed.append(_sign_result(result, near=work.near))
            yield result
        _write_signed(work, signed)

    results = prepare_rows(work._replace(compared=False), source, tick, stopped)
    if not write_staged(work.out / work.unit.staged, sign(results)):
        return None
    kept = sum(item.size for item in signed)
    return {"rows": len(signed) - rejected.total(), "rejected": dict(rejected), "payload": kept}


def _write_signed(work: Work, signed: Sequence[_Signed]) -> None:
    if work.near:
        write_atomic(work.out / work.unit.signatures, b"".join(item.signature for item in signed))
    write_atomic(work.out / work.unit.hashes, b"".join(item.digest for item in signed))


def _sign_result(result: PreparedRow | Rejected, *, near: bool) -> _Signed:
    """Return the digest and signature of a downloaded row; none of a row that is left out."""
    if isinstance(result, Rejected):
        return _UNSIGNED
    record = result.record
    data = record["image"]["bytes"]
    signed = _Signed(digest_of(record["sha256"], record["media"]), len(data), _UNSIGNED.signature)
    if not near:
        return signed
    return signed._replace(signature=_sign_image(data, record["phash"], comparable=not record["media"]))


def bytes_per_row(*, near: bool) -> int:
    """Return the bytes that a row takes in these files."""
    return len(NO_DIGEST) + (SIGNATURE.itemsize if near else 0)


def units_without_digests(units: Iterable[Unit], out: Path, *, near: bool) -> list[Unit]:
    """Return the units whose digests, or signatures if ``near``, are missing or incomplete."""

    there = list_names(out / PARTS)

    def is_whole(name: str, size: int) -> bool:
        file = out / name
        return file.name in there and file.is_file() and file.stat().st_size == size

    return [
        unit
        for unit in units
        if not is_whole(unit.hashes, 32 * unit.rows)
        or (near and not is_whole(unit.signatures, SIGNATURE.itemsize * unit.rows))
    ]


def remove_digests(units: Iterable[Unit], out: Path) -> None:
    """Delete the digests and signatures of the units."""
    there = list_names(out / PARTS)
    for file in (out / name for unit in units for name in (unit.hashes, unit.signatures)):
        if file.name in there:
            file.unlink(missing_ok=True)


def remove_staged(units: Iterable[Unit], out: Path) -> None:
    """Delete the downloaded rows of the units, which are in their shards."""
    for unit in units:
        (out / unit.staged).unlink(missing_ok=True)


class _Signed(NamedTuple):
    """The digest of a row, the bytes of its image, and the signature of the image as SIGNATURE."""

    digest: bytes
    size: int
    signature: bytes


_UNSIGNED = _Signed(NO_DIGEST, 0, bytes(SIGNATURE.itemsize))


def _sign_row(row: Row, tools: RowTools) -> _Signed:
    """Return the digest and signature of a row; none of a row that its unit leaves out: it never stays for another."""
    work = tools.work
    if usable_texts(row, work)[1]:
        return _UNSIGNED
    try:
        found = tools.source.read(row)
        data = found["image"]
    except Exception:  # noqa: BLE001 - the same row is read again by its unit, which counts it with its reason
        return _UNSIGNED
    media = [{"kind": kind, "bytes": item} for kind, item in found.items() if kind != "image"]
    signed = _Signed(digest_of(hashlib.sha256(data).digest(), media), len(data), _UNSIGNED.signature)
    if not work.near and tools.known is None:
        return signed
    try:
        with tools.decoders:
            image = examine(data, work.size, work.min_side)
            if tools.known is not None and tools.known.find(data, image):
                return _UNSIGNED
            signature = _sign_image(image.data, image.phash, comparable=not media) if work.near else signed.signature
            return signed._replace(signature=signature)
    except ImageError:
        return _UNSIGNED


def _sign_image(data: bytes, phash: int, *, comparable: bool) -> bytes:
    """Return the signature of a stored image; one that is not comparable is like those with the same digest only."""
    thumb = make_thumbnail(decode(data))
    state = FLAT_IMAGE if are_flat(np.frombuffer(thumb, np.uint8)[None])[0] else COMPARABLE
    return np.array((as_hash(phash), tuple(thumb), state if comparable else 0), SIGNATURE).tobytes()
