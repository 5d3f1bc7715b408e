"""The split of each row of a source that has only `train`: one decision per image, over all sources.

An image that a source with splits has in one of them is in that split everywhere. Of the others, `val` gets a share of
each class, as exact as counts allow.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import NO_LABEL, DatasetSource, Row
from unicl_cli.data.manifest import Count, Name
from unicl_cli.errors import Remark, UniclError
from unicl_cli.jobs.prepare.plan.even_choice import Integers, Order, choose_evenly
from unicl_cli.jobs.prepare.plan.image_groups import RowList, number_images
from unicl_cli.jobs.prepare.plan.request import PrepareOptions
from unicl_cli.jobs.prepare.plan.rows import Numbers, RowMapping, SplitRows
from unicl_cli.jobs.prepare.shards.shards import json_bytes
from unicl_cli.storage.documents import Document, read_document
from unicl_cli.storage.files import write_atomic

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
_CHUNK = 8192
_NOT_GIVEN = -1
_BITS = 8
"""Sources whose presence at an image fits one byte."""


class ReadSource(NamedTuple):
    """An open source with all its rows; ``rows`` has the splits that are not empty."""

    name: str
    source: DatasetSource
    mapping: RowMapping
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
        "sources": [[of.name, of.mapping.kind, of.fingerprint, *([of.choice] if of.choice else [])] for of in sources],
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
    """Return the saved choice; None if there is none for this ``basis``, or if it is damaged (it is then made anew).

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
        giving = [(numbers, good) for source, numbers, good in usable if _gives(source, options)]
        order = Order(_hashes(usable, _candidates(giving, self.given)))
        label, kind = _describe(usable, count)
        share = SHARE if options.holdout is None else options.holdout
        self.chosen = np.zeros(count, np.bool_)
        for images_of_val in choose_evenly(order, label, kind, share):
            self.chosen[images_of_val] = True
        for source, numbers, good in usable:
            _keep_classes(self.chosen, order, source, numbers, good)

    def split_rows(self, numbers: Integers) -> dict[str, tuple[Numbers, int]]:
        """Return for each split but `train` the rows that move there, and how many of them were not chosen."""
        moved: dict[str, tuple[Numbers, int]] = {}
        for split in sorted({VAL, *self.names} - {TRAIN}, key=lambda name: (name != VAL, name)):
            own = self.names.index(split) if split in self.names else _NOT_GIVEN
            rows, follows = array("q"), 0
            for part in _parts(len(numbers)):
                images = numbers[part]
                given = np.where(images >= 0, self.given[images], _NOT_GIVEN)
                moves = (given == own) & (own >= 0)
                follows += int(moves.sum())
                if split == VAL:
                    moves |= (images >= 0) & (given < 0) & self.chosen[images]
                rows.extend((part.start + np.flatnonzero(moves)).tolist())
            if rows:
                moved[split] = np.array(rows, np.int64), follows
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
    given = np.full(count, _NOT_GIVEN, _narrowest(len(names)))
    for number, split in reversed(list(enumerate(names))):
        for source in own:
            if split in source.rows:
                numbers = images[source.name][split]
                for part in _parts(len(numbers)):
                    given[numbers[part][numbers[part] >= 0]] = number
    return names, given


def _usable(source: ReadSource, numbers: Integers) -> Mask:
    """Mark the rows that `prepare` would keep, as far as is known before their images are decoded."""
    rows, kind = source.rows[TRAIN], source.mapping.kind
    if kind == "images":
        return numbers >= 0
    has = (row.is_labelled() if kind == "labels" else bool(row.texts) for row in rows)
    good = np.fromiter(has, np.bool_, len(rows))
    good &= numbers >= 0
    return good


def _mark(images: Mask, numbers: Integers, good: Mask) -> None:
    """Mark the images of the rows that are ``good``."""
    for part in _parts(len(numbers)):
        images[numbers[part][good[part]]] = True


def _candidates(giving: Sequence[tuple[Integers, Mask]], given: Integers) -> Mask:
    """Mark the images of usable rows whose split is not given."""
    found = np.zeros(len(given), np.bool_)
    for numbers, good in giving:
        _mark(found, numbers, good)
    found &= given < 0
    return found


def _narrowest(most: int) -> np.dtype[Any]:
    """Return the smallest type that holds -1 and the numbers up to ``most``."""
    return np.min_scalar_type(-1 - most)


def _describe(usable: Sequence[tuple[ReadSource, Integers, Mask]], count: int) -> tuple[Integers, Integers]:
    """Return for each image its rarest class, or NO_LABEL, and a number for the set of sources that have it."""
    classes = (number for source, _, _ in usable for number in source.mapping.classes)
    label = np.full(count, NO_LABEL, _narrowest(max(classes, default=0)))
    is_few = len(usable) <= _BITS
    kind = np.zeros(count, np.uint8 if is_few else np.int64)
    for source, numbers, good in usable:
        has = np.zeros(count, np.bool_)
        _mark(has, numbers, good)
        kind *= 2
        kind += has
        kind = kind if is_few else np.unique(kind, return_inverse=True)[1]
        if source.mapping.kind == "labels":
            own, found = np.full_like(label, NO_LABEL), _rarest_labels(source)
            for part in _parts(len(numbers)):
                rarest = np.fromiter(islice(found, _CHUNK), label.dtype)
                own[numbers[part][good[part]]] = rarest[good[part]]
            np.copyto(own, label, where=label != NO_LABEL)
            label = own
    return label, kind


def _rarest_labels(source: ReadSource) -> Iterator[int]:
    """Yield the class of each row, of several the one with the fewest rows; NO_LABEL for a row without one."""
    rows, labels_of = source.rows[TRAIN], source.mapping.labels
    often = Counter(label for row in rows for label in labels_of(row))
    return (min(labels_of(row), key=lambda label: (often[label], label), default=NO_LABEL) for row in rows)


def _hashes(usable: Sequence[tuple[ReadSource, Integers, Mask]], wanted: Mask) -> Iterator[tuple[int, int]]:
    """Yield a hash for each of the marked images, that of the key of its first row, and the image; unmark it."""
    for source, numbers, good in usable:
        for at, row in enumerate(source.rows[TRAIN]):
            if good[at] and wanted[number := int(numbers[at])]:
                wanted[number] = False
                key = source.mapping.key(row).encode("utf-8", "replace")
                yield int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big") << 8, number


def _parts(count: int) -> Iterator[slice]:
    """Yield slices that cut ``count`` values: numpy copies the indices that it is given."""
    for start in range(0, count, _CHUNK):
        yield slice(start, start + _CHUNK)


def _keep_classes(chosen: Mask, order: Order, source: ReadSource, numbers: Integers, good: Mask) -> None:
    """Take back the last choice from each class of a source that would be without an image in `train`.

    This happens only to images with several labels, of which `choose_evenly` knows one.
    """
    if source.mapping.kind != "labels":
        return
    left: set[int] = set()
    held: set[int] = set()
    for image, label in _labelled_images(source, numbers, good):
        (held if chosen[image] else left).add(label)
    lost = sorted(held - left)
    images: dict[int, set[int]] = {label: set() for label in lost}
    for image, label in _labelled_images(source, numbers, good) if lost else ():
        if label in images:
            images[label].add(image)
    for label in lost:
        chosen[order.find_last(np.array(list(images[label])))] = False


def _labelled_images(source: ReadSource, numbers: Integers, good: Mask) -> Iterator[tuple[int, int]]:
    """Yield the image and the class of each label of the usable rows."""
    for at, row in enumerate(source.rows[TRAIN]):
        if good[at]:
            image = int(numbers[at])
            for label in source.mapping.labels(row):
                yield image, label
