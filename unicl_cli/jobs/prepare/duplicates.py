"""Rows with equal or nearly equal images: found before any shard is written, so that shards stay independent."""

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
from unicl_cli.core.files import list_names, open_copy, write_atomic
from unicl_cli.data import text
from unicl_cli.data.manifest import DuplicateFacts, NearFacts
from unicl_cli.data.near_images import THUMB_BYTES, are_flat, as_hash, find_nearly_equal, make_thumbnail
from unicl_cli.data.pictures import Examined, ImageError, examine
from unicl_cli.data.shard_checks import ShardRules, read_columns
from unicl_cli.jobs.prepare.parts import PartMarker, read_in_order
from unicl_cli.jobs.prepare.shards import THREADS, RowTools, Tick, json_bytes, row_chunks, usable_texts
from unicl_cli.jobs.prepare.units import PARTS, Unit, Work

FILE = "duplicates.json"
_NO_DIGEST = bytes(32)
"""Digest of a row that is not compared: it cannot be read, or its unit rejects it unread."""
_EXAMPLES = 5
SIGNATURE = np.dtype([("hash", "<u8"), ("thumb", "u1", (THUMB_BYTES,)), ("state", "u1")])
"""The signature of an image in a file: its difference hash and thumbnail, and _COMPARED, _FLAT or 0."""
_COMPARED, _FLAT = 1, 2


class Duplicates(NamedTuple):
    """Equal images: ``gone`` maps the key of each row left out to the row that stays, ``texts`` what it inherits.

    The images of ``nearly`` of the rows left out differ from the one that stays.
    """

    gone: Mapping[str, str]
    texts: Mapping[str, Sequence[str]]
    facts: DuplicateFacts
    nearly: frozenset[str] = frozenset()


NO_DUPLICATES = Duplicates(
    {}, {}, DuplicateFacts(groups=0, rows=0, texts=0, labels_differ=0, labels_differ_examples=[])
)


class DuplicatesFile(Document):
    """The content of FILE; see `Duplicates`."""

    facts: Annotated[NearFacts | DuplicateFacts, Field(union_mode="left_to_right")]
    gone: dict[str, str]
    texts: dict[str, list[str]]
    nearly: list[str] = Field(default_factory=list)

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
    if work.near:
        write_atomic(work.out / work.unit.signatures, b"".join(item.signature for item in signed))
    write_atomic(work.out / work.unit.hashes, b"".join(item.digest for item in signed))
    return {"rows": len(signed), "rejected": {}, "payload": total}


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


def read_duplicates(out: Path) -> Duplicates | None:
    """Read the duplicates that an earlier command found; None if it did not get that far. UniclError if damaged."""
    try:
        found = read_document(out / FILE, DuplicatesFile, f"remove {out / FILE}: `unicl prepare` makes it again")
    except FileNotFoundError:
        return None
    return Duplicates(found.gone, found.texts, found.facts, frozenset(found.nearly))


def find_duplicates(
    units: Sequence[Unit], row_at: Callable[[Unit, int], Row], out: Path, *, near: bool = False
) -> Duplicates:
    """Compare the images of all units and save the result in FILE; of equal rows, the plan's first one stays.

    Rows are compared within a kind and split, across all sources: their digests, and if ``near`` their signatures.
    """
    gone: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    nearly: list[str] = []
    differ: list[list[str]] = []
    counts: Counter[str] = Counter()
    for members in _group_units(units):
        starts = np.cumsum([0, *(unit.rows for unit in members)])
        data = b"".join((out / unit.hashes).read_bytes() for unit in members)
        digests = np.frombuffer(data, np.uint8).reshape(-1, 32)
        groups = _group_near(digests, members, out, counts) if near else _group_equal(digests)
        for places, are_equal in groups:
            at = [int(np.searchsorted(starts, place, side="right")) - 1 for place in places]
            first, *rest = [row_at(members[n], int(p - starts[n])) for n, p in zip(at, places, strict=True)]
            gone.update(dict.fromkeys((row.key for row in rest), first.key))
            nearly += [row.key for row, equal in zip(rest, are_equal[1:].tolist(), strict=True) if not equal]
            if more := _other_texts(first, rest):
                texts[first.key] = more
            differ += [[first.key, row.key] for row in rest if row.label_set() != first.label_set()]
            counts["groups"] += 1
    facts = DuplicateFacts(
        groups=counts["groups"],
        rows=len(gone),
        texts=sum(map(len, texts.values())),
        labels_differ=len(differ),
        labels_differ_examples=differ[:_EXAMPLES],
    )
    document: dict[str, Any] = {"facts": facts.model_dump(), "gone": gone, "texts": texts}
    if near:
        equal = len(gone) - len(nearly)
        facts = NearFacts(**facts.model_dump(), equal=equal, flat=counts["flat"], crowded=counts["crowded"])
        document |= {"facts": facts.model_dump(), "nearly": nearly}
    write_atomic(out / FILE, json_bytes(document))
    return Duplicates(gone, texts, facts, frozenset(nearly))


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


_UNSIGNED = _Signed(_NO_DIGEST, 0, bytes(SIGNATURE.itemsize))


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
    digest = hashlib.sha256(data)
    media = sorted(found.keys() - {"image"})
    for kind in media:  # an image with another sound is another row
        digest.update(f"{kind}:{hashlib.sha256(found[kind]).hexdigest()}".encode())
    signed = _Signed(digest.digest(), len(data), _UNSIGNED.signature)
    if not work.near and tools.known is None:
        return signed
    try:
        with tools.decoders:
            image = examine(data, work.size, work.min_side)
            is_known = tools.known is not None and bool(tools.known.find(data, image))
            return _UNSIGNED if is_known else signed._replace(signature=_sign_image(image, comparable=not media))
    except ImageError:
        return _UNSIGNED


def _sign_image(image: Examined, *, comparable: bool) -> bytes:
    """Return the signature of an image; one that is not comparable is like those with the same digest only."""
    thumb = make_thumbnail(image.pixels)
    state = _FLAT if are_flat(np.frombuffer(thumb, np.uint8)[None])[0] else _COMPARED
    return np.array((as_hash(image.phash), tuple(thumb), state if comparable else 0), SIGNATURE).tobytes()


def _group_units(units: Sequence[Unit]) -> Iterable[list[Unit]]:
    scopes: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        scopes.setdefault((unit.kind, unit.split), []).append(unit)
    return scopes.values()


def _group_equal(digests: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield the ascending row numbers of each group of two or more equal digests, all equal; ``digests`` is (n, 32)."""
    words = np.ascontiguousarray(digests).view(np.uint64)  # (n, 4)
    order = np.lexsort(words.T)  # stable: equal rows stay in ascending order
    ordered = words[order]
    ends = np.flatnonzero(np.append((ordered[1:] != ordered[:-1]).any(1), True)) + 1
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        if end - start > 1 and ordered[start].any():
            yield order[start:end], np.ones(end - start, np.bool_)


def _group_near(
    digests: NDArray[np.uint8], units: Sequence[Unit], out: Path, counts: Counter[str]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield the ascending row numbers of each group of equal or nearly equal images, and which equal the first one.

    Every row of a group nearly equals its first, so no chain of small changes joins different images. Adds the images
    that cannot be compared to ``counts``.
    """
    files = [_map_signatures(out / unit.signatures) for unit in units]
    state = np.concatenate([file["state"] for file in files])
    own = np.arange(len(digests))
    equal = own.copy()  # the first row with the same digest
    for places, _ in _group_equal(digests):
        equal[places] = places[0]
    starts = np.cumsum([0, *map(len, files)])

    def read(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        at = np.searchsorted(starts, rows, side="right") - 1
        return np.stack(
            [files[n]["thumb"][row] for n, row in zip(at.tolist(), (rows - starts[at]).tolist(), strict=True)]
        )

    hashes = np.concatenate([file["hash"] for file in files])
    found = find_nearly_equal(hashes, (state == _COMPARED) & (equal == own), read)
    counts.update(flat=int(((state == _FLAT) & (equal == own)).sum()), crowded=found.crowded)
    first = np.where(found.earlier < 0, own, found.earlier)[equal]
    order = np.lexsort((own, first))
    for places in np.split(order, np.flatnonzero(np.diff(first[order])) + 1):
        if len(places) > 1:
            yield places, equal[places] == equal[places[0]]


def _map_signatures(file: Path) -> NDArray[Any]:
    with open_copy(file) as copy:
        return np.memmap(copy, SIGNATURE, "r")


def _other_texts(first: Row, rest: Sequence[Row]) -> list[str]:
    met = {text.clean(t) for t in first.texts}
    more: list[str] = []
    for other in (t for row in rest for t in row.texts):
        if (plain := text.clean(other)) not in met:
            met.add(plain)
            more.append(other)
    return more
