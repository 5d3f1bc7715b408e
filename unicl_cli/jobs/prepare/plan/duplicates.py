"""Rows with equal or nearly equal images: found before any shard is written, so that shards stay independent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from unicl_cli.contracts import Row
from unicl_cli.data import text
from unicl_cli.data.manifest import DuplicateFacts, NearFacts
from unicl_cli.data.shard_checks import ShardRules, read_columns
from unicl_cli.jobs.prepare.plan.holdout import TRAIN
from unicl_cli.jobs.prepare.shards.parts import PartMarker, read_in_order
from unicl_cli.jobs.prepare.shards.prepared_row import read_rejects
from unicl_cli.jobs.prepare.shards.progress import warn
from unicl_cli.jobs.prepare.shards.scopes import (
    Scope,
    count_near_train,
    match_across,
    read_scope,
)
from unicl_cli.jobs.prepare.shards.shards import json_bytes
from unicl_cli.jobs.prepare.shards.units import Unit
from unicl_cli.storage.documents import Document, read_document
from unicl_cli.storage.files import write_atomic

FILE = "duplicates.json"
_EXAMPLES = 5


class Duplicates(NamedTuple):
    """Equal images: ``gone`` maps the key of each row left out to the row that stays, ``texts`` what it inherits.

    The images of ``nearly`` of the rows left out differ from the one that stays. ``leaks`` maps the training rows that
    are left out for a row of another split to that split. ``compared`` are the shards whose rows were compared, of a
    corpus with URLs: `--retry-failed` adds others.
    """

    gone: Mapping[str, str]
    texts: Mapping[str, Sequence[str]]
    facts: DuplicateFacts
    nearly: frozenset[str] = frozenset()
    leaks: Mapping[str, str] = {}
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
    leaks: dict[str, str] = Field(default_factory=dict)
    compared: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        kept = set(self.gone.values())
        counted = (len(kept), len(self.gone), sum(map(len, self.texts.values())))
        if counted != (self.facts.groups, self.facts.rows, self.facts.texts):
            raise ValueError("facts: contradict the rows that are listed")
        if kept & self.gone.keys() or self.texts.keys() - kept:
            raise ValueError("gone: a row is both kept and left out, or has texts of others and is not kept")
        near = self.facts if isinstance(self.facts, NearFacts) else None
        if self.leaks.keys() - self.gone.keys() or Counter(self.leaks.values()) != Counter(near.leaks if near else {}):
            raise ValueError("leaks: contradict the rows that are listed")
        equal = near.equal if near else self.facts.rows
        if len(set(self.nearly) & self.gone.keys()) != len(self.nearly) or equal + len(self.nearly) != self.facts.rows:
            raise ValueError("nearly: contradicts the rows that are listed")
        return self


def read_duplicates(out: Path) -> Duplicates | None:
    """Read the duplicates that an earlier command found; None if it did not get that far. UniclError if damaged."""
    try:
        found = read_document(out / FILE, DuplicatesFile, f"remove {out / FILE}: `unicl prepare` rebuilds it")
    except FileNotFoundError:
        return None
    nearly, compared = frozenset(found.nearly), frozenset(found.compared)
    return Duplicates(found.gone, found.texts, found.facts, nearly, found.leaks, compared)


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
    Then training rows go first for rows of all other splits that stay, and these take over no texts. With ``earlier``,
    rows that were compared before stay as they are, and FILE names the shards.
    """
    before = earlier.found if earlier else NO_DUPLICATES
    of = _Findings(before, earlier.finished if earlier else frozenset(), row_at)
    ordered = sorted(units, key=lambda unit: unit.shard not in before.compared)  # stable: new rows come last
    scopes = [read_scope(members, out, near=near) for members in _group_units(ordered)]
    if earlier:
        for scope in scopes:
            _hide_left_out(scope, earlier, out)
    if near:
        _find_near(scopes, of)
    else:
        for scope in scopes:
            _find_in_scope(scope, of)
    facts = of.facts()
    document: dict[str, Any] = {"facts": facts.model_dump(), "gone": of.gone, "texts": of.texts}
    if near:
        facts = _count_near(scopes, of)
        document |= {"facts": facts.model_dump(), "nearly": of.nearly, "leaks": of.leaks}
    compared = frozenset(unit.shard for unit in units) if earlier else frozenset[str]()
    if compared:
        document["compared"] = sorted(compared)
    write_atomic(out / FILE, json_bytes(document))
    if of.late_texts:
        warn(f"captions of duplicates left out, because the row that stays is in a finished shard: {of.late_texts:,}")
    return Duplicates(of.gone, of.texts, facts, frozenset(of.nearly), of.leaks, compared)


class _Findings:
    """Duplicates found scope by scope, added to those found ``before``."""

    def __init__(self, before: Duplicates, finished: frozenset[str], row_at: Callable[[Unit, int], Row]) -> None:
        self.before, self.finished, self.row_at = before, finished, row_at
        self.gone = dict(before.gone)
        self.texts = {key: list(texts) for key, texts in before.texts.items()}
        self.nearly = sorted(before.nearly)
        self.leaks = dict(before.leaks)
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

    def add_leak(self, row: Row, other: Row, split: str, *, is_equal: bool) -> None:
        """Note that a training row goes for one of another split, which must not change: it takes over no text."""
        self.gone[row.key] = other.key
        self.leaks[row.key] = split
        if not is_equal:
            self.nearly.append(row.key)

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


def _find_near(scopes: Sequence[Scope], of: _Findings) -> None:
    """Add the duplicates of all scopes; a training row that is like one of another split goes for no training row."""
    training, others = _split_training(scopes)
    for scope in others:
        _find_in_scope(scope, of)
    for match in match_across(others, training):
        if match.place[0].shard not in of.before.compared:
            match.scope.hide([match.at])
            other, split = of.row_at(*match.other), match.other[0].split
            of.add_leak(of.row_at(*match.place), other, split, is_equal=match.is_equal)
    for scope in training:
        _find_in_scope(scope, of)


def _count_near(scopes: Sequence[Scope], of: _Findings) -> NearFacts:
    training, others = _split_training(scopes)
    splits = dict.fromkeys((scope.split for scope in others), 0) if training else {}
    flat, crowded = (sum(getattr(scope, name) for scope in scopes) for name in ("flat", "crowded"))
    # in the first comparison none stays
    stay = count_near_train(training, others) if of.before.compared else {}
    return NearFacts(
        **of.facts().model_dump(),
        equal=len(of.gone) - len(of.nearly),
        flat=flat,
        crowded=crowded,
        leaks={**splits, **Counter(of.leaks.values())},
        also_in_train={**splits, **stay},
    )


def _split_training(scopes: Sequence[Scope]) -> tuple[list[Scope], list[Scope]]:
    training = [scope for scope in scopes if scope.split == TRAIN]
    return training, [scope for scope in scopes if scope.split != TRAIN]


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
