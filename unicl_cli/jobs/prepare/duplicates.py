"""Rows with equal or nearly equal images: found before any shard is written, so that shards stay independent."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from unicl_cli.contracts import DatasetSource, Row
from unicl_cli.core.documents import Document, read_document
from unicl_cli.core.files import list_names, write_atomic
from unicl_cli.data import text
from unicl_cli.data.manifest import DuplicateFacts, NearFacts
from unicl_cli.data.near_images import are_flat, as_hash, make_thumbnail
from unicl_cli.data.pictures import ImageError, decode, examine
from unicl_cli.data.shard_checks import ShardRules, read_columns
from unicl_cli.jobs.prepare.parts import PartMarker, read_in_order
from unicl_cli.jobs.prepare.prepared_row import PreparedRow, Rejected, read_rejects
from unicl_cli.jobs.prepare.progress import warn
from unicl_cli.jobs.prepare.scopes import COMPARABLE, FLAT_IMAGE, SIGNATURE, Scope, count_near_train
from unicl_cli.jobs.prepare.shards import THREADS, RowTools, Tick, json_bytes, prepare_rows, row_chunks, usable_texts
from unicl_cli.jobs.prepare.staged import NO_DIGEST, digest_of, write_staged
from unicl_cli.jobs.prepare.units import PARTS, Unit, Work

FILE = "duplicates.json"
_EXAMPLES = 5


class Duplicates(NamedTuple):
    """Equal images: ``gone`` maps the key of each row left out to the row that stays, ``texts`` what it inherits.

    The images of ``nearly`` of the rows left out differ from the one that stays. ``compared`` are the shards whose rows
    were compared, of a corpus with URLs: `--retry-failed` adds others.
    """

    gone: Mapping[str, str]
    texts: Mapping[str, Sequence[str]]
    facts: DuplicateFacts
    nearly: frozenset[str] = frozenset()
    compared: frozenset[str] = frozenset()


NO_DUPLICATES = Duplicates(
    {}, {}, DuplicateFacts(groups=0, rows=0, texts=0, labels_differ=0, labels_differ_examples=[])
)


class DuplicatesFile(Document):
    """The content of FILE; see `Duplicates`."""

    facts: Annotated[NearFacts | DuplicateFacts, Field(union_mode="left_to_right")]
    gone: dict[str, str]
    texts: dict[str, list[str]]
    nearly: list[str] = Field(default_factory=list)
    compared: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        kept = set(self.gone.values())
        counted = (len(kept), len(self.gone), sum(map(len, self.texts.values())))
        if counted != (self.facts.groups, self.facts.rows, self.facts.texts):
            raise ValueError("facts: contradict the rows that are listed")
        if kept & self.gone.keys() or self.texts.keys() - kept:
            raise ValueError("gone: a row is both kept and left out, or has texts of others and is not kept")
        equal = self.facts.equal if isinstance(self.facts, NearFacts) else self.facts.rows
        if len(set(self.nearly) & self.gone.keys()) != len(self.nearly) or equal + len(self.nearly) != self.facts.rows:
            raise ValueError("nearly: contradicts the rows that are listed")
        return self


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


def read_duplicates(out: Path) -> Duplicates | None:
    """Read the duplicates that an earlier command found; None if it did not get that far. UniclError if damaged."""
    try:
        found = read_document(out / FILE, DuplicatesFile, f"remove {out / FILE}: `unicl prepare` makes it again")
    except FileNotFoundError:
        return None
    return Duplicates(found.gone, found.texts, found.facts, frozenset(found.nearly), frozenset(found.compared))


class Earlier(NamedTuple):
    """The duplicates that were found before more rows came; shards that are ``finished`` do not change any more.

    ``rows_of`` returns all rows of a unit.
    """

    found: Duplicates
    finished: frozenset[str]
    rows_of: Callable[[Unit], Sequence[Row]]


def find_duplicates(
    units: Sequence[Unit],
    row_at: Callable[[Unit, int], Row],
    out: Path,
    *,
    near: bool = False,
    earlier: Earlier | None = None,
) -> Duplicates:
    """Compare the images of all units and save the result in FILE; of equal rows, the plan's first one stays.

    Rows are compared within a kind and split, across all sources: their digests, and if ``near`` their signatures.
    With ``earlier``, rows that were compared before stay as they are, and FILE names the shards.
    """
    before = earlier.found if earlier else NO_DUPLICATES
    of = _Findings(before, earlier.finished if earlier else frozenset(), row_at)
    ordered = sorted(units, key=lambda unit: unit.shard not in before.compared)  # stable: new rows come last
    scopes = [Scope(members, out, near=near) for members in _group_units(ordered)]
    for scope in scopes:
        if earlier:
            _hide_left_out(scope, earlier, out)
        _find_in_scope(scope, of)
    facts = of.facts()
    document: dict[str, Any] = {"facts": facts.model_dump(), "gone": of.gone, "texts": of.texts}
    if near:
        equal = len(of.gone) - len(of.nearly)
        alike = count_near_train(scopes)
        flat, crowded = (sum(getattr(scope, name) for scope in scopes) for name in ("flat", "crowded"))
        facts = NearFacts(**facts.model_dump(), equal=equal, flat=flat, crowded=crowded, also_in_train=alike)
        document |= {"facts": facts.model_dump(), "nearly": of.nearly}
    compared = frozenset(unit.shard for unit in units) if earlier else frozenset[str]()
    if compared:
        document["compared"] = sorted(compared)
    write_atomic(out / FILE, json_bytes(document))
    if of.late_texts:
        warn(f"captions of duplicates left out, because the row that stays is in a finished shard: {of.late_texts:,}")
    return Duplicates(of.gone, of.texts, facts, frozenset(of.nearly), compared)


class _Findings:
    """Duplicates found scope by scope, added to those found ``before``."""

    def __init__(self, before: Duplicates, finished: frozenset[str], row_at: Callable[[Unit, int], Row]) -> None:
        self.before, self.finished, self.row_at = before, finished, row_at
        self.gone = dict(before.gone)
        self.texts = {key: list(texts) for key, texts in before.texts.items()}
        self.nearly = sorted(before.nearly)
        self.differ: list[list[str]] = []
        self.late_texts = 0

    def add(self, first: Row, rest: Sequence[tuple[Row, bool]], *, is_written: bool) -> None:
        """Note that ``rest``, of which some are equal byte for byte, goes; ``first`` stays, and may be written."""
        self.gone.update(dict.fromkeys((row.key for row, _ in rest), first.key))
        self.nearly += [row.key for row, is_equal in rest if not is_equal]
        self.differ += [[first.key, row.key] for row, _ in rest if row.label_set() != first.label_set()]
        more = _other_texts((*first.texts, *self.texts.get(first.key, ())), [row for row, _ in rest])
        if is_written:
            self.late_texts += len(more)
        elif more:
            self.texts[first.key] = [*self.texts.get(first.key, ()), *more]

    def facts(self) -> DuplicateFacts:
        before = self.before.facts
        return DuplicateFacts(
            groups=len(set(self.gone.values())),
            rows=len(self.gone),
            texts=sum(map(len, self.texts.values())),
            labels_differ=before.labels_differ + len(self.differ),
            labels_differ_examples=[*before.labels_differ_examples, *self.differ][:_EXAMPLES],
        )


def _find_in_scope(scope: Scope, of: _Findings) -> None:
    """Add the duplicates of a scope; a row that was compared before goes for no other."""
    for places, are_equal in scope.groups():
        units = [scope.place(place) for place in places]
        fresh = [n for n in range(1, len(places)) if units[n][0].shard not in of.before.compared]
        if fresh:
            scope.hide([places[n] for n in fresh])
            rest = [(of.row_at(*units[n]), are_equal[n]) for n in fresh]
            of.add(of.row_at(*units[0]), rest, is_written=units[0][0].shard in of.finished)


def _hide_left_out(scope: Scope, earlier: Earlier, out: Path) -> None:
    """Hide the rows of earlier units that are not in the corpus: none may stay for another."""
    for number, unit in enumerate(scope.units):
        if unit.shard not in earlier.found.compared:
            continue
        left_out = {row.key for row in read_rejects(out / unit.rejects)} | earlier.found.gone.keys()
        start = int(scope.starts[number])
        scope.hide([start + at for at, row in enumerate(earlier.rows_of(unit)) if row.key in left_out])


def count_equal_images(folder: Path, shards: Sequence[PartMarker]) -> dict[str, Any]:
    """Count equal images among the stored ones, by 64 bits of their sha256.

    ``in_a_kind``: rows that repeat an image of their kind and split; ``in_two_kinds``: training images with rows of
    several kinds; ``of_eval``: for every other split, training rows whose image is also in that split.
    """
    found: dict[tuple[str, str], list[NDArray[np.uint64]]] = {}

    def read(shard: PartMarker) -> NDArray[np.uint64]:
        rules = ShardRules(shard.kind, 0)
        column = read_columns(folder / shard.file, shard.row_groups, ["sha256"], rules).column("sha256")
        return np.frombuffer(b"".join(column.to_pylist()), np.uint64)[::4]

    for shard, digests in zip(shards, read_in_order(folder, read, shards), strict=True):
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
            is_known = tools.known is not None and bool(tools.known.find(data, image))
            return (
                _UNSIGNED
                if is_known
                else signed._replace(signature=_sign_image(image.data, image.phash, comparable=not media))
            )
    except ImageError:
        return _UNSIGNED


def _sign_image(data: bytes, phash: int, *, comparable: bool) -> bytes:
    """Return the signature of a stored image; one that is not comparable is like those with the same digest only."""
    thumb = make_thumbnail(decode(data))
    state = FLAT_IMAGE if are_flat(np.frombuffer(thumb, np.uint8)[None])[0] else COMPARABLE
    return np.array((as_hash(phash), tuple(thumb), state if comparable else 0), SIGNATURE).tobytes()


def _group_units(units: Sequence[Unit]) -> Iterable[list[Unit]]:
    scopes: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        scopes.setdefault((unit.kind, unit.split), []).append(unit)
    return scopes.values()


def _other_texts(known: Iterable[str], rest: Sequence[Row]) -> list[str]:
    met = {text.clean(t) for t in known}
    more: list[str] = []
    for other in (t for row in rest for t in row.texts):
        if (plain := text.clean(other)) not in met:
            met.add(plain)
            more.append(other)
    return more
