"""Downloaded rows of `--dedup`: kept until all images are compared, and how they are known again later.

A list of URLs is asked once. What came back is kept in a file next to the unit's marker until its shard is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from unicl_cli.contracts import Row
from unicl_cli.data.corpus_format import schema_of
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.shards.prepared_row import PreparedRow, Rejected, read_rejects
from unicl_cli.jobs.prepare.shards.units import Work
from unicl_cli.storage.files import open_copy, replace_durably, temporary_beside
from unicl_cli.storage.json_text import parse_json

NO_DIGEST = bytes(32)
"""Digest of a row that is not compared: it cannot be read, or its unit rejects it unread."""
NOT_COMPARED = "not_compared"
"""Reason of a row whose image is another one than at the time when images were compared."""
_BATCH = 32
_SCHEMA = pa.schema(
    [
        ("record", pa.struct(list(schema_of(sets=True, media=True)))),
        ("animated", pa.bool_()),
        ("rejected", pa.string()),
    ]
)
"""A line for each row of a unit: its record, or the line of a file of rejects."""


def write_staged(file: Path, results: Iterable[PreparedRow | Rejected | None]) -> bool:
    """Write the results of a unit's rows; False, and no file, if they broke off."""
    with temporary_beside(file) as part:
        with pa.OSFile(str(part), "wb") as sink:
            if not _write_batches(sink, results):
                return False
        replace_durably(part, file)
    return True


def measure_staged(results: Iterable[PreparedRow | Rejected]) -> int:
    """Return the bytes that such a file of these results has."""
    sink = pa.MockOutputStream()
    _write_batches(sink, results)
    return sink.size()


def _write_batches(sink: Any, results: Iterable[PreparedRow | Rejected | None]) -> bool:
    """Write the results until one is None; False if one was."""
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        some: list[dict[str, Any]] = []
        for result in results:
            if result is None:
                return False
            some.append(_as_line(result))
            if len(some) == _BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(some, _SCHEMA))
                some = []
        if some:
            writer.write_batch(pa.RecordBatch.from_pylist(some, _SCHEMA))
    return True


def read_staged(file: Path) -> Iterator[PreparedRow | Rejected]:
    """Yield the results of a unit's rows, in order."""
    with open_copy(file) as copy, pa.memory_map(str(copy)) as opened, pa.ipc.open_file(opened) as reader:
        for number in range(reader.num_record_batches):
            yield from map(_as_result, reader.get_batch(number).to_pylist())


def digest_of(image: bytes, media: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the digest that equal rows share: the sha256 of the image, and with media one of all of them.

    ``image`` is the sha256 of the image; an image with another sound is another row.
    """
    if not media:
        return image
    digest = hashlib.sha256(image)
    for item in sorted(media, key=lambda item: item["kind"]):
        digest.update(f"{item['kind']}:{hashlib.sha256(item['bytes']).hexdigest()}".encode())
    return digest.digest()


class ComparedRows:
    """The rows of a unit whose shard is rebuilt: their digests, and why others were left out.

    Its duplicates are known already, so a URL may only give the image that was compared, and one that gave none is not
    requested again: `--retry-failed` may have it in another shard by now.
    """

    def __init__(self, work: Work) -> None:
        file = work.out / work.unit.hashes
        data = file.read_bytes() if file.is_file() else b""
        if len(data) != 32 * len(work.rows):
            raise UniclError(
                f"{file}: missing or damaged, so downloaded images cannot be compared",
                "prepare the list again into another -o",
            )
        self._digests = {row.key: data[32 * at : 32 * at + 32] for at, row in enumerate(work.rows)}
        self._left_out = {row.key: row for row in read_rejects(work.out / work.unit.rejects)}

    def left_out(self, row: Row) -> Rejected | None:
        """Return the earlier outcome of a row that is not in the shard; None for other rows."""
        earlier = self._left_out.get(row.key)
        if earlier is None and self._digests[row.key] == NO_DIGEST:
            return self.reject(row, None)
        return earlier

    def has(self, row: Row, image: bytes, media: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether a row still has the image, by its sha256, and the media that were compared."""
        return self._digests[row.key] == digest_of(image, media)

    def reject(self, row: Row, url: str | None) -> Rejected:
        """Return the outcome of a row with another image."""
        return Rejected(row.key, row.ref, NOT_COMPARED, "another image than when duplicates were searched for", url)


def _as_line(result: PreparedRow | Rejected) -> dict[str, Any]:
    if isinstance(result, Rejected):
        return {"rejected": result.as_line()}
    return {"record": result.record, "animated": result.animated}


def _as_result(line: Mapping[str, Any]) -> PreparedRow | Rejected:
    if line["rejected"] is not None:
        return Rejected(**parse_json(line["rejected"]))
    return PreparedRow(line["record"], line["animated"], 0)
