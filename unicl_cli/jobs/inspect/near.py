"""Near duplicates of a corpus: within its splits, between them and `train`, and in other corpora."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import Sample
from unicl_cli.data.corpus import Corpus, RowTable
from unicl_cli.data.near_images import (
    THUMB_BYTES,
    are_flat,
    compare_thumbs,
    find_candidates,
    find_nearly_equal,
    make_thumbnail,
)
from unicl_cli.data.pictures import ImageError, decode
from unicl_cli.inference.progress import progress
from unicl_cli.jobs.prepare.shards.download import map_ahead
from unicl_cli.jobs.prepare.shards.not_in import OtherCorpus

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
MAX_PAIRS = 12
"""Pairs shown of each comparison, at most."""
_THREADS, _AHEAD = 4, 32


class ImageSet:
    """The rows of a split, of one kind or all, with what their corpus knows of the images: 25 bytes for each."""

    def __init__(self, corpus: Corpus, split: str, kind: str | None = None) -> None:
        self.corpus, self.split = corpus, split
        kinds = corpus.kinds(split) if kind is None else [kind]
        self.tables: list[RowTable] = [corpus.table(split, kind) for kind in kinds]
        self.starts = np.cumsum([0, *map(len, self.tables)])
        self.images = np.concatenate([of for table in self.tables for of in table.image_hashes()])
        columns = [chunk for table in self.tables for chunk in table.column("phash").chunks]
        self.hashed = np.concatenate([np.array(chunk.is_valid().to_pylist(), np.bool_) for chunk in columns])
        values = [np.from_dlpack(chunk.fill_null(0)).astype(np.int64) for chunk in columns]
        self.hashes = np.concatenate(values).view(np.uint64)
        _, first, inverse = np.unique(self.images, return_index=True, return_inverse=True)
        self.first: Ints = first[inverse]  # the first row with the same image

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, row: int) -> Sample:
        table = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.tables[table].read(row - int(self.starts[table]))

    def usable(self) -> Mask:
        """Mark the first row of each image, unless its hash is unknown."""
        return self.hashed & (self.first == np.arange(len(self)))


class NearPair(NamedTuple):
    """Two nearly equal images, the bits in which their hashes differ, and the correlation of their thumbnails."""

    row: Sample
    like: Sample
    of: ImageSet
    like_of: ImageSet
    bits: int
    similarity: float

    def facts(self) -> dict[str, Any]:
        """Return the pair without its images."""
        row, like = _describe(self.row, self.of), _describe(self.like, self.like_of)
        return {"row": row, "like": like, "bits": self.bits, "similarity": round(self.similarity, 4)}


class NearFound(NamedTuple):
    """The facts of the document, and the pairs that the page shows."""

    facts: dict[str, Any]
    pairs: list[NearPair]


def find_near(corpus: Corpus, split: str, against: Sequence[OtherCorpus]) -> NearFound:
    """Find near duplicates in each kind and split, rows near an image of `train`, and rows of ``split`` in others.

    Only images whose hashes are near another's are decoded.
    """
    sets = {name: ImageSet(corpus, name) for name in corpus.splits}
    counts: Counter[str] = Counter()
    counts["unhashed"] = sum(int((~of.hashed).sum()) for of in sets.values())
    facts: dict[str, Any] = {"splits": [], "also_in_train": {}, "against": []}
    pairs: list[NearPair] = []
    for other in against:
        found = [_compare(sets[split], ImageSet(other.corpus, name), counts) for name in _splits_of(other)]
        same, near = (np.any([getattr(of, way) for of in found], 0) for way in ("same", "near"))
        rows = {"same": int(same.sum()), "near": int((near & ~same).sum())}
        facts["against"].append({**other.record(), "rows": len(sets[split]), **rows})
        pairs += [pair for of in found for pair in of.pairs][:MAX_PAIRS]
    if "train" in sets:
        for name in sets.keys() - {"train"}:
            found = _compare(sets[name], sets["train"], counts)
            facts["also_in_train"][name] = int((found.near & ~found.same).sum())
            pairs += found.pairs
        facts["also_in_train"] = {name: facts["also_in_train"][name] for name in sets if name != "train"}
    for name in sets:
        for kind in corpus.kinds(name):
            found = _compare(of := ImageSet(corpus, name, kind), None, counts)
            rows = {"rows": len(of), "near": int(found.near.sum()), "groups": found.groups}
            facts["splits"].append({"split": name, "kind": kind, **rows})
            pairs += found.pairs
    facts |= {name: counts[name] for name in ("flat", "unreadable", "unhashed", "crowded")}
    return NearFound(facts | {"examples": [pair.facts() for pair in pairs]}, pairs)


def _splits_of(other: OtherCorpus) -> Sequence[str]:
    return other.corpus.splits if other.split is None else [other.split]


class _Compared(NamedTuple):
    """The rows whose image is the ``same`` as one of the others, or ``near`` one; ``groups`` of them are alike."""

    same: Mask
    near: Mask
    groups: int
    pairs: list[NearPair]


def _compare(rows: ImageSet, others: ImageSet | None, counts: Counter[str]) -> _Compared:
    """Compare the images of a split with those of another, or with each other (None)."""
    sets = [rows] if others is None else [others, rows]
    fixed = 0 if others is None else len(others)
    hashes = np.concatenate([of.hashes for of in sets])
    usable = np.concatenate([of.usable() for of in sets])
    same = np.zeros(len(rows), np.bool_) if others is None else np.isin(rows.images, others.images)
    usable[fixed:] &= ~same
    candidates = np.flatnonzero(find_candidates(hashes, usable, fixed))
    with tempfile.TemporaryFile() as file:
        thumbs = _read_thumbs(sets, candidates, file, usable, counts)

        def read(at: Ints) -> NDArray[np.uint8]:
            return np.asarray(thumbs[np.searchsorted(candidates, at)])

        found = find_nearly_equal(hashes, usable, read, fixed)
        counts["crowded"] += found.crowded
        near = found.earlier[fixed + rows.first] >= 0
        shown = np.flatnonzero(found.earlier >= 0)[:MAX_PAIRS]
        pairs = [_pair(sets, int(at), int(found.earlier[at]), hashes, read) for at in shown]
    return _Compared(same, near, len(np.unique(found.earlier[found.earlier >= 0])), pairs)


def _read_thumbs(
    sets: Sequence[ImageSet], candidates: Ints, file: Any, usable: Mask, counts: Counter[str]
) -> NDArray[np.uint8]:
    """Write the thumbnails of the candidates to ``file``; those that show nothing are ``usable`` no more."""
    thumbs = np.memmap(file, np.uint8, "w+", shape=(max(1, len(candidates)), THUMB_BYTES))
    ends = np.cumsum([len(of) for of in sets])
    samples = chain.from_iterable(
        (of.read(row) for row in (candidates[(candidates >= end - len(of)) & (candidates < end)] - end + len(of)))
        for of, end in zip(sets, ends.tolist(), strict=True)
    )
    with progress("comparing images", len(candidates)) as advance:
        done = map_ahead(_make_thumb, samples, threads=_THREADS, ahead=_AHEAD)
        for place, (at, thumb) in enumerate(zip(candidates.tolist(), done, strict=True)):
            if thumb is None or are_flat(thumb[None])[0]:
                usable[at] = False
                counts["unreadable" if thumb is None else "flat"] += 1
            else:
                thumbs[place] = thumb
            advance(1)
    return thumbs


def _make_thumb(sample: Sample) -> NDArray[np.uint8] | None:
    try:
        return np.frombuffer(make_thumbnail(decode(sample.image)), np.uint8)
    except ImageError:
        return None


def _pair(sets: Sequence[ImageSet], at: int, like: int, hashes: NDArray[np.uint64], read: Any) -> NearPair:
    thumbs = read(np.array([at, like]))
    bits = int(np.bitwise_count(hashes[at] ^ hashes[like]))
    (row, of), (other, other_of) = _place(sets, at), _place(sets, like)
    return NearPair(row, other, of, other_of, bits, float(compare_thumbs(thumbs[0], thumbs[1:])[0]))


def _place(sets: Sequence[ImageSet], at: int) -> tuple[Sample, ImageSet]:
    of = sets[0]
    if at >= len(of):
        at, of = at - len(of), sets[1]
    return of.read(at), of


def _describe(sample: Sample, of: ImageSet) -> dict[str, Any]:
    return {"corpus": of.corpus.name, "split": of.split, "key": sample.key, "shows": shown_words(sample, of.corpus)}


def shown_words(sample: Sample, corpus: Corpus) -> str:
    """Return the classes of a row, or else its first caption."""
    if sample.labels:
        return ", ".join(corpus.classes[label].names[0] for label in sample.labels)
    return next(iter(sample.texts), "")
