"""The split of each row of a source that has only `train`: one decision per image, over all sources.

An image that another source has in a split of its own is in that split everywhere. Of the others, `val` gets a share
of each class, as exact as counts allow.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL, DatasetSource, Row
from unicl_cli.core.documents import Document, read_document
from unicl_cli.core.files import write_atomic
from unicl_cli.data.manifest import Count, Name
from unicl_cli.errors import Remark, UniclError
from unicl_cli.jobs.prepare.image_groups import RowList, number_images
from unicl_cli.jobs.prepare.request import PrepareOptions
from unicl_cli.jobs.prepare.rows import Adoption, Numbers, SplitRows
from unicl_cli.jobs.prepare.shards import json_bytes

FILE = "holdout.json"
MOST_BYTES = 2_000_000_000
"""The largest ``FILE``: it has a number for each row."""
SHARE = 0.05
MIN_ROWS = 200
"""Rows from which on a source with only `train` gives images to `val`, unless --holdout is set."""
RULE = 1
"""Version of the choice, which a finished part of a corpus depends on."""
TRAIN, VAL = "train", "val"
Mask = NDArray[np.bool_]
Integers = NDArray[np.integer]
_CHUNK = 8192
_BITS = 8
"""Sources whose presence at an image fits one byte."""


class ReadSource(NamedTuple):
    """An open source with all its rows; ``rows`` has the splits that are not empty."""

    name: str
    source: DatasetSource
    adoption: Adoption
    rows: Mapping[str, Sequence[Row]]
    fingerprint: str
    has_sets: bool = False
    has_urls: bool = False
    choice: str = ""
    """The rule that chose its rows; empty if all of them are there."""

    @property
    def is_open(self) -> bool:
        """True if the source says nothing about splits: all its rows are in `train`."""
        return list(self.rows) == [TRAIN]


class HoldoutFile(Document):
    """The content of FILE; see `Holdout`."""

    basis: dict[str, Any]
    moved: dict[str, dict[Name, list[Count]]]
    followed: dict[str, dict[str, Count]]


class Holdout(NamedTuple):
    """The rows that leave `train`: source -> split -> their numbers; ``followed`` of them for another source's split.

    ``basis`` says what the choice depends on; ``sizes`` are the numbers of rows of the open sources.
    """

    moved: dict[str, dict[str, Numbers]]
    followed: dict[str, dict[str, int]]
    basis: dict[str, Any]
    sizes: dict[str, int]

    def splits_of(self, source: ReadSource) -> dict[str, SplitRows]:
        """Return the numbers of the rows of each split of ``source``, in its order."""
        none = np.empty(0, np.int64)
        splits = {split: SplitRows(none, of=len(rows)) for split, rows in source.rows.items()}
        moved = self.moved.get(source.name, {})
        if moved:
            splits[TRAIN] = SplitRows(np.sort(np.concatenate(list(moved.values()))), of=len(source.rows[TRAIN]))
        splits.update({split: SplitRows(rows) for split, rows in moved.items()})
        return {split: rows for split, rows in splits.items() if len(rows)}

    def facts(self) -> dict[str, Any] | None:
        """Return what `plan.json` says of the choice; None if no row moved."""
        if not self.moved:
            return None
        whole = json.dumps(self._lists(), sort_keys=True)
        return {"rule": RULE, "sha256": hashlib.sha256(whole.encode()).hexdigest()}

    def notes(self, sources: Sequence[ReadSource]) -> Iterator[str]:
        """Yield a line for each source with rows that moved."""
        for source in sources:
            rows = sum(map(len, source.rows.values()))
            followed = self.followed.get(source.name, {})
            for split, order in self.moved.get(source.name, {}).items():
                with_others = followed.get(split, 0)
                if chosen := len(order) - with_others:
                    yield Remark(
                        f"{source.name}: no validation split: moved {chosen:,} of {rows:,} rows to '{split}', "
                        "by image and evenly over the classes (--holdout 0 turns this off)"
                    )
                if with_others:
                    yield Remark(
                        f"{source.name}: moved {with_others:,} of {rows:,} rows to '{split}', "
                        "where another source has the same images"
                    )

    def save(self, out: Path) -> None:
        """Write FILE unless it is there, so that a later command need not read the images again."""
        if not self.moved or _read(out, self.basis, self.sizes):
            return
        document = {"basis": self.basis, "moved": self._lists(), "followed": self.followed}
        write_atomic(out / FILE, json_bytes(document))

    def _lists(self) -> dict[str, dict[str, list[int]]]:
        return {name: {split: order.tolist() for split, order in of.items()} for name, of in self.moved.items()}


def hold_out(
    sources: Sequence[ReadSource], options: PrepareOptions, out: Path | None, *, compare: bool = True
) -> Holdout:
    """Choose the split of every row of the open sources, or read the choice that an earlier command saved in ``out``.

    Without ``compare`` no image is read: equal images at different places may then be on different sides.
    """
    basis = {
        "rule": RULE,
        "holdout": options.holdout,
        "sources": [[of.name, of.adoption.kind, of.fingerprint, *([of.choice] if of.choice else [])] for of in sources],
    }
    sizes = {source.name: len(source.rows[TRAIN]) for source in sources if source.is_open}
    if not _is_needed(sources, options):
        return Holdout({}, {}, basis, sizes)
    if out is not None and (saved := _read(out, basis, sizes)):
        return saved
    lists = [RowList(source.source, rows) for source in sources for rows in source.rows.values()]
    numbers = iter(number_images(lists, compare=compare))
    images = {source.name: {split: next(numbers) for split in source.rows} for source in sources}
    choice = _Choice(sources, images, options)
    moved: dict[str, dict[str, Numbers]] = {}
    followed: dict[str, dict[str, int]] = {}
    for source in sources:
        if source.is_open:
            own = choice.split_rows(images[source.name][TRAIN])
            moved[source.name] = {split: rows for split, (rows, _) in own.items()}
            followed[source.name] = {split: count for split, (_, count) in own.items() if count}
    moved = {name: of for name, of in moved.items() if of}
    return Holdout(moved, {name: of for name, of in followed.items() if of}, basis, sizes)


def _is_needed(sources: Sequence[ReadSource], options: PrepareOptions) -> bool:
    is_open = [source for source in sources if source.is_open]
    others = {split for source in sources if not source.is_open for split in source.rows}
    return bool(is_open) and (bool(others - {TRAIN}) or any(_gives(source, options) for source in is_open))


def _gives(source: ReadSource, options: PrepareOptions) -> bool:
    """Return whether the images of a source may be chosen for `val`."""
    if options.holdout is None:
        return source.is_open and len(source.rows[TRAIN]) >= MIN_ROWS
    return source.is_open and options.holdout > 0


def _read(out: Path, basis: Mapping[str, Any], sizes: Mapping[str, int]) -> Holdout | None:
    """Return the saved choice; None if there is none for this ``basis``, or if it is damaged: it is then made again.

    ``sizes`` are the numbers of rows of the open sources.
    """
    try:
        saved = read_document(out / FILE, HoldoutFile, "")
    except (FileNotFoundError, UniclError):
        return None
    if saved.basis != basis or not all(_fits(of, sizes.get(name, 0)) for name, of in saved.moved.items()):
        return None
    moved = {name: {s: np.array(rows, np.int64) for s, rows in of.items()} for name, of in saved.moved.items()}
    return Holdout(moved, saved.followed, saved.basis, dict(sizes))


def _fits(moved: Mapping[str, Sequence[int]], size: int) -> bool:
    """Return True if the lists are ascending numbers below ``size``, none in two lists."""
    whole = [number for rows in moved.values() for number in rows]
    is_ascending = all(a < b for rows in moved.values() for a, b in pairwise(rows))
    return is_ascending and len(set(whole)) == len(whole) and max(whole, default=-1) < size


def is_saved(path: Path) -> bool:
    """Return whether a file is a choice that `Holdout.save` wrote."""
    try:
        read_document(path, HoldoutFile, "")
    except (FileNotFoundError, UniclError):
        return False
    return True


class _Choice:
    """The split of every image: ``given`` by a source's own splits, or ``chosen`` for `val`."""

    def __init__(
        self, sources: Sequence[ReadSource], images: Mapping[str, Mapping[str, Integers]], options: PrepareOptions
    ) -> None:
        count = 1 + max(int(of.max(initial=-1)) for own in images.values() for of in own.values())
        self.names, self.given = _given_splits(sources, images, count)
        pool = [(source, images[source.name][TRAIN]) for source in sources if source.is_open]
        usable = [(source, numbers, _usable(source, numbers)) for source, numbers in pool]
        offered = np.zeros(count, np.bool_)
        for source, numbers, good in usable:
            if _gives(source, options):
                offered[numbers[good]] = True
        label, kind = _describe(usable, count)
        candidates = np.flatnonzero(offered & (self.given < 0)).astype(pool[0][1].dtype)
        share = SHARE if options.holdout is None else options.holdout
        order = candidates[np.argsort(_hashes(usable, candidates, count), kind="stable")]
        self.chosen = np.zeros(count, np.bool_)
        self.chosen[choose_evenly(order, label, kind, share)] = True
        for source, numbers, good in usable:
            _keep_classes(self.chosen, order, source, numbers, good)

    def split_rows(self, numbers: Integers) -> dict[str, tuple[Numbers, int]]:
        """Return for each split but `train` the rows that move there, and how many of them were not chosen."""
        readable = numbers >= 0
        given = np.where(readable, self.given[numbers], -1)
        chosen = readable & (given < 0) & self.chosen[numbers]
        moved: dict[str, tuple[Numbers, int]] = {}
        for split in sorted({VAL, *self.names} - {TRAIN}, key=lambda name: (name != VAL, name)):
            follows = given == self.names.index(split) if split in self.names else np.zeros(len(numbers), np.bool_)
            rows = np.flatnonzero(follows | chosen if split == VAL else follows)
            if len(rows):
                moved[split] = rows, int(follows.sum())
        return moved


def _given_splits(
    sources: Sequence[ReadSource], images: Mapping[str, Mapping[str, Integers]], count: int
) -> tuple[list[str], Integers]:
    """Return the names of the splits that sources give, and the number of each image's split among them, or -1.

    An image in several is in test, else in val, else in any but train.
    """
    own = [source for source in sources if not source.is_open]
    met = {split for source in own for split in source.rows}
    names = sorted(met, key=lambda name: (name == TRAIN, name != "test", name != VAL, name))
    given = np.full(count, -1, np.int32)
    for number, split in reversed(list(enumerate(names))):
        for source in own:
            if split in source.rows:
                numbers = images[source.name][split]
                given[numbers[numbers >= 0]] = number
    return names, given


def _usable(source: ReadSource, numbers: Integers) -> Mask:
    """Mark the rows that `prepare` would keep, as far as is known before their images are decoded."""
    rows, kind = source.rows[TRAIN], source.adoption.kind
    if kind == "images":
        return numbers >= 0
    has = (row.is_labelled() if kind == "labels" else bool(row.texts) for row in rows)
    return (numbers >= 0) & np.fromiter(has, np.bool_, len(rows))


def _describe(usable: Sequence[tuple[ReadSource, Integers, Mask]], count: int) -> tuple[Integers, Integers]:
    """Return for each image its rarest class, or NO_LABEL, and a number for the set of sources that have it."""
    label = np.full(count, NO_LABEL, np.int32)
    is_few = len(usable) <= _BITS
    kind = np.zeros(count, np.uint8 if is_few else np.int64)
    for source, numbers, good in usable:
        has = np.zeros(count, np.bool_)
        has[numbers[good]] = True
        kind = 2 * kind + has
        kind = kind if is_few else np.unique(kind, return_inverse=True)[1]
        if source.adoption.kind == "labels":
            own = np.full(count, NO_LABEL, np.int32)
            own[numbers[good]] = _rarest_labels(source)[good]
            label = np.where(label == NO_LABEL, own, label)
    return label, kind


def _labels(source: ReadSource) -> tuple[Numbers, Numbers]:
    """Return all labels of a source as pairs of a row and a class, int64 (pairs,) each, in row order."""
    rows, labels = array("q"), array("q")
    for number, row in enumerate(source.rows[TRAIN]):
        for label in source.adoption.labels(row):
            rows.append(number)
            labels.append(label)
    return np.frombuffer(rows, np.int64), np.frombuffer(labels, np.int64)


def _rarest_labels(source: ReadSource) -> Numbers:
    """Return the class of each row, of several the one with the fewest rows; NO_LABEL for a row without one."""
    rows, labels = _labels(source)
    found = np.full(len(source.rows[TRAIN]), NO_LABEL, np.int64)
    if (rows[1:] > rows[:-1]).all():  # one label each
        found[rows] = labels
        return found
    often = np.bincount(labels)[labels]
    order = np.lexsort((labels, often, rows))
    first = order[np.unique(rows[order], return_index=True)[1]]
    found[rows[first]] = labels[first]
    return found


def _hashes(usable: Sequence[tuple[ReadSource, Integers, Mask]], images: Integers, count: int) -> NDArray[np.uint64]:
    """Return a hash for each of the images: that of the key of its first row."""
    found = np.zeros(count, np.uint64)
    wanted = np.zeros(count, np.bool_)
    wanted[images] = True
    for source, numbers, good in usable:
        rows = source.rows[TRAIN]
        for at in _places(good & wanted[numbers]):
            if wanted[number := int(numbers[at])]:
                wanted[number] = False
                key = source.adoption.key(rows[at]).encode("utf-8", "replace")
                found[number] = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
    return found if len(images) == count else found[images]


def _places(mask: Mask) -> Iterator[int]:
    """Yield the places that are marked, without a list of all of them."""
    for start in range(0, len(mask), _CHUNK):
        yield from (start + np.flatnonzero(mask[start : start + _CHUNK])).tolist()


def choose_evenly(order: Integers, label: Integers, kind: Integers, share: float) -> Integers:
    """Choose ``share`` of the images in ``order``, the first ones of each class and, inside a class, of each kind.

    ``label`` and ``kind`` are integers, by image. The whole, each class and each kind of a class differ from their
    exact share by less than one image; the last image of a class is never chosen. Images without a label are a class,
    too.
    """
    if not len(order):
        return order
    own = label[order]
    if (own != own[0]).any():
        order = order[np.argsort(own, kind="stable")]
    sizes = np.unique(own, return_counts=True)[1]
    del own
    quotas = apportion(sizes, round(share * len(order)), sizes - 1)
    chosen: list[Integers] = []
    for members, quota in zip(np.split(order, np.cumsum(sizes)[:-1]), quotas.tolist(), strict=True):
        kinds, counts = np.unique(kind[members], return_counts=True)
        for number, wanted in zip(kinds.tolist(), apportion(counts, quota, counts).tolist(), strict=True):
            chosen.append(members[kind[members] == number][:wanted])
    return np.concatenate(chosen)


def apportion(sizes: Numbers, total: int, most: Numbers) -> Numbers:
    """Divide ``total`` in proportion to ``sizes`` by the largest remainders, each part at most ``most``; int64.

    What a part cannot take for its ``most`` is not given to others: each differs by less than one from its exact share.
    """
    exact = total * sizes / sizes.sum()
    parts = np.minimum(np.floor(exact + 1e-9).astype(np.int64), most)
    order = np.argsort(-(exact - parts), kind="stable")
    open_ones = order[(parts < np.minimum(most, exact - 1e-9))[order]]
    parts[open_ones[: max(0, total - int(parts.sum()))]] += 1
    return parts


def _keep_classes(chosen: Mask, order: Integers, source: ReadSource, numbers: Integers, good: Mask) -> None:
    """Take back the last choice from each class of a source that would be without an image in `train`.

    This happens only to images with several labels, of which `choose_evenly` knows one.
    """
    if source.adoption.kind != "labels":
        return
    rows, labels = _labels(source)
    images, labels = numbers[rows[good[rows]]], labels[good[rows]]
    lost = np.setdiff1d(labels, labels[~chosen[images]])
    place = np.full(len(chosen), -1, np.int64)
    place[order] = np.arange(len(order))
    for label in lost.tolist():
        own = images[labels == label]
        chosen[own[np.argmax(place[own])]] = False
