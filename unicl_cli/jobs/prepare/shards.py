"""One unit of `prepare`: rows of a source in, one Parquet shard and its marker out, both or neither."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli.contracts import NO_LABEL, DatasetSource, Row
from unicl_cli.core.files import replace_durably, temporary_beside, write_atomic
from unicl_cli.data import text
from unicl_cli.data.corpus_format import SCHEMA
from unicl_cli.data.pictures import PictureError, examine

THREADS = 4
CHUNK = 64
"""Rows that are read and decoded before the next look at the stop flag, or a row group where that is less."""
DECODERS = 2
"""Images that a process holds decoded at once: up to 192 MB each."""
MOST_WORDS = 1000
"""Longer captions are counted with this many words."""
_CODECS = {"image.bytes": "NONE", "key": "ZSTD", "texts.list.element": "ZSTD"}


class Unit(NamedTuple):
    """A shard to be: ``rows`` rows from ``first`` on of a permuted split; ``name`` is its file without the suffix."""

    name: str
    split: str
    source: str
    kind: str
    first: int
    rows: int
    group_rows: int

    @property
    def shard(self) -> str:
        return f"data/{self.split}/{self.name}.parquet"

    @property
    def marker(self) -> str:
        return f"parts/{self.split}.{self.name}.json"

    @property
    def rejects(self) -> str:
        return f"rejects/{self.split}.{self.name}.jsonl"

    @property
    def hashes(self) -> str:
        return f"parts/{self.split}.{self.name}.sha256"


class Work(NamedTuple):
    """A unit with what a worker needs to do it: ``src`` rebuilds the source.

    ``size`` bounds short sides from above, ``min_side`` from below.

    ``gone``: keys of rows that are left out as duplicates -> the row that stays.
    """

    unit: Unit
    out: Path
    src: str
    rows: list[Row]
    size: int | None
    raw_text: bool
    gone: Mapping[str, str]
    min_side: int = 0


class Rejected(NamedTuple):
    """A row that is left out, and why."""

    key: str
    ref: str
    reason: str
    detail: str


class Prepared(NamedTuple):
    """A row as it is stored, and what the closing table says of it."""

    record: dict[str, Any]
    animated: bool
    texts_dropped: int


Tick = Callable[[int, int, Mapping[str, int]], None]
"""Is told of rows done, bytes kept of their images, and how many were left out by reason."""


def write_unit(work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Write shard, rejects and last the marker, which is returned; None if stopped (then nothing is left behind).

    The same work gives the same bytes.
    """
    unit, tally = work.unit, Tally()
    shard = work.out / unit.shard
    sha256, size = None, 0
    with temporary_beside(shard) as part:
        with part.open("wb") as file:
            if not _write_groups(file, _results(work, source, tick, stopped), unit.group_rows, tally):
                return None
        if tally.rows:
            with part.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = part.stat().st_size
            replace_durably(part, shard)
    lines = "".join(json.dumps(r._asdict(), ensure_ascii=False) + "\n" for r in tally.rejects)
    if lines:
        write_atomic(work.out / unit.rejects, lines.encode("utf-8", "replace"))
    else:
        (work.out / unit.rejects).unlink(missing_ok=True)  # of an earlier plan
    named = {"file": unit.shard, "split": unit.split, "source": unit.source, "kind": unit.kind}
    marker = {**named, "bytes": size, "sha256": sha256, **tally.facts()}
    write_atomic(work.out / unit.marker, json_bytes(marker))
    return marker


class Tally:
    """Counts over the rows of a unit."""

    def __init__(self) -> None:
        self.rows = 0
        self.row_groups: list[int] = []
        self.rejects: list[Rejected] = []
        self.labels: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.short_sides: list[int] = []
        self.words: Counter[int] = Counter()
        self.payload = 0
        self.payload_at_256 = 0

    def add(self, row: Prepared) -> None:
        record = row.record
        self.rows += 1
        self.labels[record["label"]] += 1
        self.counts["captioned"] += bool(record["texts"])
        self.counts["texts"] += len(record["texts"])
        self.words.update(min(len(t.split()), MOST_WORDS) for t in record["texts"])
        self.counts["texts_dropped"] += row.texts_dropped
        self.counts["animated"] += row.animated
        short = min(record["width"], record["height"])
        self.short_sides.append(short)
        size = len(record["image"]["bytes"])
        self.payload += size
        self.payload_at_256 += int(size * min(1, 256 / short) ** 2)

    def facts(self) -> dict[str, Any]:
        reasons = Counter(r.reason for r in self.rejects)
        return {
            "rows": self.rows,
            "row_groups": self.row_groups,
            "labels": {str(label): n for label, n in sorted(self.labels.items()) if label != NO_LABEL},
            **{name: self.counts[name] for name in ("captioned", "texts", "texts_dropped", "animated")},
            "words": {str(count): n for count, n in sorted(self.words.items())},
            "short_side": [min(self.short_sides, default=0), max(self.short_sides, default=0)],
            "payload": self.payload,
            "payload_at_256": self.payload_at_256,
            "rejected": dict(sorted(reasons.items())),
        }


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """One document with a final newline, keys as given."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")


def chunks_of(work: Work) -> Iterator[list[Row]]:
    """The rows in portions after which progress is told."""
    step = max(THREADS, min(CHUNK, work.unit.group_rows))
    return (work.rows[start : start + step] for start in range(0, len(work.rows), step))


def _results(
    work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]
) -> Iterator[Prepared | Rejected | None]:
    """Every row's result in the order of the rows; ends with None when stopped, which waits for no image."""
    decoders = threading.Semaphore(DECODERS)

    def one(row: Row) -> Prepared | Rejected | None:
        return None if stopped() else prepare_row(row, source=source, work=work, decoders=decoders)

    with ThreadPoolExecutor(THREADS) as threads:
        for chunk in chunks_of(work):
            done = list(threads.map(one, chunk))
            if None in done:
                yield None
                return
            yield from done
            kept = sum(len(row.record["image"]["bytes"]) for row in done if isinstance(row, Prepared))
            tick(len(chunk), kept, Counter(row.reason for row in done if isinstance(row, Rejected)))


def _write_groups(file: BinaryIO, results: Iterator[Prepared | Rejected | None], group_rows: int, tally: Tally) -> bool:
    """Row groups of ``group_rows`` rows each, the last one shorter; False if the results broke off."""
    pending: list[dict[str, Any]] = []
    with pq.ParquetWriter(
        file,
        SCHEMA,
        compression=_CODECS,  # pyright: ignore[reportArgumentType] - the stub knows one codec only
        use_dictionary=["source"],  # pyright: ignore[reportArgumentType] - nor a list
        write_page_index=True,
        write_page_checksum=True,  # a flipped bit is met as an error when the page is read
    ) as writer:
        for result in results:
            if result is None:
                return False
            if isinstance(result, Rejected):
                tally.rejects.append(result)
                continue
            tally.add(result)
            pending.append(result.record)
            if len(pending) == group_rows:
                _write_group(writer, pending, tally)
        if pending:
            _write_group(writer, pending, tally)
    return True


def _write_group(writer: pq.ParquetWriter, pending: list[dict[str, Any]], tally: Tally) -> None:
    writer.write_table(pa.Table.from_pylist(pending, SCHEMA), row_group_size=len(pending))
    tally.row_groups.append(len(pending))
    pending.clear()


def prepare_row(row: Row, *, source: DatasetSource, work: Work, decoders: threading.Semaphore) -> Prepared | Rejected:
    """Read, decode and describe one row; every failure becomes a reason."""
    texts, reason = usable_texts(row, work)
    if reason:
        return Rejected(row.key, row.ref, reason, " ".join(row.texts)[:200])
    if row.key in work.gone:
        return Rejected(row.key, row.ref, "duplicate", f"the same image as {work.gone[row.key]}")
    try:
        data = source.read(row)["image"]
        with decoders:
            picture = examine(data, work.size, work.min_side)
    except PictureError as error:
        return Rejected(row.key, row.ref, error.reason, error.detail)
    except FileNotFoundError as error:
        return Rejected(row.key, row.ref, "missing_file", str(error))
    except Exception as error:  # noqa: BLE001 - a source may fail in any way: counted with its type
        return Rejected(row.key, row.ref, "read_error", f"{type(error).__name__}: {error}")
    record = {
        "key": row.key,
        "image": {"bytes": picture.data, "path": None},
        "texts": texts,
        "text_hash": [text.text_hash(t) for t in texts],
        "label": row.label,
        "source": work.unit.source,
        "width": picture.width,
        "height": picture.height,
        "sha256": hashlib.sha256(data).digest(),
        "phash": picture.phash,
        "url": None,
    }
    return Prepared(record, picture.animated, len(row.texts) - len(texts))


def usable_texts(row: Row, work: Work) -> tuple[list[str], str | None]:
    """The texts as they are stored, and the reason why the row is left out unread, if it is."""
    texts = _texts(row.texts, raw_text=work.raw_text)
    return texts, _unusable(row, texts, work.unit.kind)


def _texts(texts: tuple[str, ...], *, raw_text: bool) -> list[str]:
    if raw_text:
        return [text.raw(t) for t in texts if t.strip()]
    return [t for t in map(text.clean, texts) if not text.bad_text(t)]


def _unusable(row: Row, texts: list[str], kind: str) -> str | None:
    if kind == "captions" and not texts:
        return "bad_text" if row.texts else "no_text"
    return "no_label" if kind == "labels" and row.label == NO_LABEL and row.ref else None
