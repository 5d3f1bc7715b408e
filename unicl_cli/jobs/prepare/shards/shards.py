"""One unit of `prepare`: the rows of a source become one Parquet shard and its marker, both or neither."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli import __version__
from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.data import text
from unicl_cli.data.corpus_format import KNOWN, LABELS, MEDIA, schema_of
from unicl_cli.data.fetch import FetchError
from unicl_cli.data.media import MAX_MEDIA_BYTES, MediaError
from unicl_cli.data.pictures import ImageError, examine
from unicl_cli.data.sources.lists.record import BAD_LINE
from unicl_cli.jobs.prepare.shards.download import AHEAD, DOWNLOADS, download, host_of, map_ahead, origin_of, url_of
from unicl_cli.jobs.prepare.shards.not_in import SAME, Known, open_index
from unicl_cli.jobs.prepare.shards.prepared_row import PreparedRow, Rejected
from unicl_cli.jobs.prepare.shards.staged import ComparedRows, read_staged
from unicl_cli.jobs.prepare.shards.tally import Tally
from unicl_cli.jobs.prepare.shards.units import Work
from unicl_cli.storage.files import replace_durably, temporary_beside, write_atomic

THREADS = 4
CHUNK = 64
"""Maximum number of rows that are read and decoded ahead of the one that is written; a row group may be smaller."""
VERSIONS: Mapping[str, str] = {"unicl": __version__, "pyarrow": pa.__version__, "pillow": PIL.__version__}
"""The versions that decide the bytes of a shard."""
IN_TURN = 8
"""Maximum number of rows that a thread reads one after the other: to hand one over costs time, too."""
DECODERS = 2
"""Maximum number of images that a process holds decoded at once: up to 192 MB each."""
GROUP_IMAGE_BYTES = 64_000_000
"""A row group ends early above this: one is planned with 8 MB, but the images of a URL may have any size."""
GROUP_MEDIA_BYTES = 512_000_000
"""A row group ends early above this: Arrow holds at most 2 GB of bytes in a column, and a loader all of them."""
_CODECS = {"image.bytes": "NONE", "key": "ZSTD", "texts.list.element": "ZSTD"}


Tick = Callable[[int, int, Mapping[str, int]], None]
"""A callback of progress: rows done, bytes kept of their images, rows left out by reason."""


def write_unit(work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Write the shard, the rejects and last the marker; return the marker, or None if stopped (nothing is left behind).

    The same work gives the same bytes.
    """
    unit, tally = work.unit, Tally()
    shard = work.out / unit.shard
    sha256, size = None, 0
    with temporary_beside(shard) as part:
        with part.open("wb") as file:
            if not _write_groups(file, _find_results(work, source, tick, stopped), work, tally):
                return None
        if tally.rows:
            with part.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = part.stat().st_size
            replace_durably(part, shard)
    lines = "".join(row.as_line() for row in tally.rejects)
    if lines:
        write_atomic(work.out / unit.rejects, lines)
    else:
        (work.out / unit.rejects).unlink(missing_ok=True)  # of an earlier plan
    named = {"file": unit.shard, "split": unit.split, "source": unit.source, "kind": unit.kind}
    marker = {**named, "bytes": size, "sha256": sha256, **tally.facts()}
    if unit.retried:
        marker["retried"] = dict(unit.retried)
    if work.groups is not None and unit.kind == "labels":
        marker["set_sizes"] = {str(count): rows for count, rows in sorted(tally.set_sizes.items())}
    write_atomic(work.out / unit.marker, json_bytes(marker))
    if work.compared:
        (work.out / unit.staged).unlink(missing_ok=True)
    return marker


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a JSON document with a final newline, keys in the given order."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")


def row_chunks(work: Work) -> Iterator[list[Row]]:
    """Return the rows in chunks; progress is reported after each."""
    step = max(THREADS, min(CHUNK, work.unit.group_rows))
    return (work.rows[start : start + step] for start in range(0, len(work.rows), step))


def _find_results(
    work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]
) -> Iterator[PreparedRow | Rejected | None]:
    """Yield every row's result in order: of rows that were downloaded to be compared, what was kept of them."""
    if work.compared and (work.out / work.unit.staged).is_file():
        return _report_along(_finish_staged(work, source, stopped), work, tick)
    return prepare_rows(work, source, tick, stopped)


def prepare_rows(
    work: Work, source: DatasetSource, tick: Tick, stopped: Callable[[], bool]
) -> Iterator[PreparedRow | Rejected | None]:
    """Yield every row's result in order; None is the last one after a stop, which waits for no image."""
    tools = RowTools(source, work)
    found = _download_rows(work, tools, stopped) if work.fetch else _read_rows(work, tools, stopped)
    yield from _report_along(found, work, tick)


def _read_rows(work: Work, tools: RowTools, stopped: Callable[[], bool]) -> Iterator[PreparedRow | Rejected | None]:
    """Yield the results of rows that threads read and decode, some ahead."""

    def prepare(rows: Sequence[Row]) -> list[PreparedRow | Rejected | None]:
        return [None if stopped() else prepare_row(row, tools) for row in rows]

    some = min(CHUNK, work.unit.group_rows)
    in_turn = min(IN_TURN, max(1, some // tools.threads))
    parts = (work.rows[start : start + in_turn] for start in range(0, len(work.rows), in_turn))
    ahead = max(tools.threads, some // in_turn)
    return chain.from_iterable(map_ahead(prepare, parts, threads=tools.threads, ahead=ahead, weigh=_weigh))


def _weigh(results: Sequence[PreparedRow | Rejected | None]) -> int:
    """Return the bytes that results hold."""
    return sum(result.stored_bytes for result in results if isinstance(result, PreparedRow))


def _download_rows(work: Work, tools: RowTools, stopped: Callable[[], bool]) -> Iterator[PreparedRow | Rejected | None]:
    """Yield the results of rows that threads download, many ahead, and that are decoded here.

    Threads that decode as well wait for each other so often that it takes a fifth more CPU.
    """

    def read(row: Row) -> ReadRow | Rejected | None:
        return None if stopped() else read_row(row, tools)

    found = map_ahead(
        read,
        work.rows,
        threads=tools.threads,
        ahead=AHEAD,
        weigh=_weigh_read,
        host=tools.host_of,
        per_host=work.per_host,
    )
    for each in found:
        if stopped():
            yield None
            return
        yield finish_row(each, tools) if isinstance(each, ReadRow) else each


def _weigh_read(read: ReadRow | Rejected | None) -> int:
    """Return the bytes that a row holds that waits to be decoded."""
    return sum(map(len, read.found.values())) if isinstance(read, ReadRow) else 0


def _finish_staged(
    work: Work, source: DatasetSource, stopped: Callable[[], bool]
) -> Iterator[PreparedRow | Rejected | None]:
    """Yield the kept results, without the rows that are duplicates, and with the texts that others inherit."""
    for row, result in zip(work.rows, read_staged(work.out / work.unit.staged), strict=True):
        if stopped():
            yield None
            return
        if isinstance(result, Rejected):
            yield result
            continue
        texts, _ = usable_texts(row, work)
        record = result.record | {"texts": texts, "text_hash": [text.text_hash(t) for t in texts]}
        kept = PreparedRow(record, result.animated, len(row.texts) - len(texts))
        yield reject_duplicate(row, work, url_of(source, row)) or kept


def _report_along(
    results: Iterator[PreparedRow | Rejected | None], work: Work, tick: Tick
) -> Iterator[PreparedRow | Rejected | None]:
    """Yield the results and report their progress, some at a time; the first None ends them."""
    done: list[PreparedRow | Rejected] = []
    some = min(CHUNK, work.unit.group_rows)
    for result in results:
        yield result
        if result is None:
            return
        done.append(result)
        if len(done) == some:
            _report_progress(done, tick)
            done = []
    _report_progress(done, tick)


def _report_progress(done: Sequence[PreparedRow | Rejected], tick: Tick) -> None:
    kept = sum(len(row.record["image"]["bytes"]) for row in done if isinstance(row, PreparedRow))
    tick(len(done), kept, Counter(row.reason for row in done if isinstance(row, Rejected)))


def _write_groups(file: BinaryIO, results: Iterator[PreparedRow | Rejected | None], work: Work, tally: Tally) -> bool:
    """Write row groups of ``group_rows`` rows, the last one shorter; False if the results broke off."""
    schema = schema_of(sets=work.groups is not None, media=work.media)
    pending: list[dict[str, Any]] = []
    pending_images = pending_media = 0
    with pq.ParquetWriter(
        file,
        schema,
        compression=_CODECS,  # pyright: ignore[reportArgumentType] - the stub knows one codec only
        use_dictionary=["source"],  # pyright: ignore[reportArgumentType] - nor a list
        write_page_index=True,
        write_page_checksum=True,  # a flipped bit raises an error when the page is read
    ) as writer:
        for result in results:
            if result is None:
                return False
            if isinstance(result, Rejected):
                tally.rejects.append(result)
                continue
            tally.add(result)
            pending.append(result.record)
            pending_images += result.stored_bytes - result.media_bytes
            pending_media += result.media_bytes
            is_large = pending_images > GROUP_IMAGE_BYTES or pending_media > GROUP_MEDIA_BYTES
            if len(pending) == work.unit.group_rows or is_large:
                tally.row_groups.append(_write_group(writer, pending, schema))
                pending, pending_images, pending_media = [], 0, 0
        if pending:
            tally.row_groups.append(_write_group(writer, pending, schema))
    return True


def _write_group(writer: pq.ParquetWriter, rows: list[dict[str, Any]], schema: Any) -> int:
    """Write one row group and return the number of its rows."""
    writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))
    return len(rows)


class RowTools:
    """The parts that the threads of a unit share."""

    def __init__(self, source: DatasetSource, work: Work) -> None:
        self.source, self.work = source, work
        self.decoders = threading.Semaphore(DECODERS)
        self.threads = DOWNLOADS if work.fetch else THREADS
        self.known = open_index(work.out) if work.not_in else None
        self.compared = ComparedRows(work) if work.compared else None

    def read(self, row: Row, url: str | None) -> Mapping[str, bytes]:
        """Return what the row has, by kind; FetchError if its image cannot be downloaded."""
        if url is None or self.work.fetch is None:
            return self.source.read(row)
        media = dict(self.source.read(row)) if media_of(self.source) else {}
        return {**media, "image": download(self.work.fetch, url)}

    def host_of(self, row: Row) -> str:
        """Return the host that the row's image is downloaded from; empty if the source reads it."""
        return host_of(url_of(self.source, row) or "") if self.work.fetch else ""


class ReadRow(NamedTuple):
    """A row whose image, and other media by kind, are read and not yet looked at; ``texts`` as they are stored."""

    row: Row
    texts: list[str]
    url: str | None
    found: Mapping[str, bytes]


def prepare_row(row: Row, tools: RowTools) -> PreparedRow | Rejected:
    """Read, decode and describe one row; turn every failure into a reason."""
    found = read_row(row, tools)
    return found if isinstance(found, Rejected) else finish_row(found, tools)


def read_row(row: Row, tools: RowTools) -> ReadRow | Rejected:
    """Read or download what a row has, unless it is left out without that."""
    work = tools.work
    texts, reason = usable_texts(row, work)
    if reason:
        detail = row.ref.removeprefix(BAD_LINE) if reason == "bad_line" else " ".join(row.texts)[:200]
        return Rejected(row.key, row.ref, reason, detail)
    url = url_of(tools.source, row) if work.fetch else None
    if earlier := (tools.compared and tools.compared.left_out(row)) or reject_duplicate(row, work, url):
        return earlier
    try:
        return ReadRow(row, texts, url, tools.read(row, url))
    except Exception as error:  # noqa: BLE001 - a source may fail in any way: counted with its type
        return reject_failed(row, url, error)


def finish_row(read: ReadRow, tools: RowTools) -> PreparedRow | Rejected:
    """Decode and describe a row that is read."""
    row, texts, url, found = read
    work = tools.work
    try:
        data = found["image"]
        media = stored_media(found, media_of(tools.source))
        with tools.decoders:
            image = examine(data, work.size, work.min_side)
            known = tools.known.find(data, image) if tools.known else []
    except Exception as error:  # noqa: BLE001 - as above
        return reject_failed(row, url, error)
    if known:
        return _reject_known(row, url, known)
    digest = hashlib.sha256(data).digest()
    if tools.compared and not tools.compared.has(row, digest, media):
        return tools.compared.reject(row, url)
    record = {
        "key": row.key,
        "image": {"bytes": image.data, "path": None},
        "texts": texts,
        "text_hash": [text.text_hash(t) for t in texts],
        "label": row.label,
        "source": work.unit.source,
        "width": image.width,
        "height": image.height,
        "sha256": digest,
        "phash": image.phash,
        "url": origin_of(tools.source, row) if url is None else url,
        # no columns unless the corpus has label sets, and media
        LABELS: row.labels,
        KNOWN: sum(1 << number for number, name in enumerate(work.groups or ()) if name in (row.known or ())),
        MEDIA: media,
    }
    return PreparedRow(record, image.animated, len(row.texts) - len(texts))


def reject_failed(row: Row, url: str | None, error: Exception) -> Rejected:
    """Return the outcome of a row that cannot be read or decoded."""
    if isinstance(error, ImageError | MediaError | FetchError):
        return Rejected(row.key, row.ref, error.reason, error.detail, url)
    if isinstance(error, FileNotFoundError):
        return Rejected(row.key, row.ref, "missing_file", str(error))
    return Rejected(row.key, row.ref, "read_error", f"{type(error).__name__}: {error}")


def _reject_known(row: Row, url: str | None, known: Sequence[Known]) -> Rejected:
    first, found = known[0], {str(each.corpus): each.how for each in known}
    same = "the same image as" if first.how == SAME else "nearly the same image as"
    return Rejected(row.key, row.ref, "in_other_corpus", f"{same} {first.row}", url, found)


def reject_duplicate(row: Row, work: Work, url: str | None) -> Rejected | None:
    """Return the outcome of a row whose image, perhaps at a ``url``, another one has, or nearly; None for others."""
    first = work.gone.get(row.key)
    if first is None:
        return None
    where = f", split {work.leaks[row.key]}" if row.key in work.leaks else ""
    if row.key in work.nearly:
        return Rejected(row.key, row.ref, "near_duplicate", f"nearly the same image as {first}{where}", url)
    return Rejected(row.key, row.ref, "duplicate", f"the same image as {first}{where}", url)


def media_of(source: DatasetSource) -> tuple[str, ...]:
    """Return the kinds of media that a source names; the attribute is optional."""
    return tuple(getattr(source, "media", ()))


def stored_media(found: Mapping[str, bytes], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a source read besides the image, as it is stored: in the order of the source's ``kinds``.

    Raises MediaError for a kind that the source does not name, for an item that is not bytes or is too large.
    """
    for kind, data in found.items():
        if kind == "image":
            continue
        if kind not in kinds:
            raise MediaError("bad_media", f"'{kind}' is not in the source's media ({', '.join(kinds) or 'none'})")
        if not isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - plugins may return anything
            raise MediaError("bad_media", f"{kind}: {type(data).__name__} instead of bytes")
        if len(data) > MAX_MEDIA_BYTES:
            raise MediaError("media_too_large", f"{kind}: {len(data):,} bytes")
    return [{"kind": kind, "bytes": found[kind]} for kind in kinds if kind in found]


def usable_texts(row: Row, work: Work) -> tuple[list[str], str | None]:
    """Return the texts as they are stored, and the reason if the row is left out unread."""
    texts = _stored_texts(row.texts, raw_text=work.raw_text)
    return texts, _text_problem(row, texts, work.unit.kind)


def _stored_texts(texts: tuple[str, ...], *, raw_text: bool) -> list[str]:
    if raw_text:
        return [text.replace_surrogates(t) for t in texts if t.strip()]
    return [t for t in map(text.clean, texts) if not text.is_bad_text(t)]


def _text_problem(row: Row, texts: list[str], kind: str) -> str | None:
    if row.ref.startswith(BAD_LINE):
        return "bad_line"
    if kind == "captions" and not texts:
        return "bad_text" if row.texts else "no_text"
    return "no_label" if kind == "labels" and not row.is_labelled() else None
