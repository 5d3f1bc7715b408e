"""The marker of a finished unit, ``parts/*.json``: its model, its only reader, and what it must say of its unit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from unicl_cli.data.corpus import READERS, find_damage
from unicl_cli.data.manifest import Count, Kind, Positive, SetSize, Sha256, ShardPath
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.shards.download import map_ahead
from unicl_cli.jobs.prepare.shards.tally import MOST_WORDS
from unicl_cli.jobs.prepare.shards.units import PARTS, Unit
from unicl_cli.storage.documents import Document, read_document
from unicl_cli.storage.files import list_names
from unicl_cli.storage.remote import RemotePath

MAX_MARKER = 16_000_000
"""The largest marker in bytes: 8,192 rows with a class each have less than 1 MB."""
T = TypeVar("T")
R = TypeVar("R")
_Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]


class PartMarker(Document):
    """Outcome of one unit: its shard, and counts over its rows. ``bytes`` is 0 if no row was left for a shard."""

    file: ShardPath
    split: str
    source: str
    kind: Kind
    bytes: Count
    sha256: Sha256 | None
    rows: Count
    row_groups: list[Positive]
    labels: dict[_Number, Positive]
    captioned: Count
    texts: Count
    texts_dropped: Count
    animated: Count
    words: dict[_Number, Positive]
    short_side: Annotated[list[Count], Field(min_length=2, max_length=2)]
    payload: Count
    payload_at_256: Count
    rejected: dict[str, Positive]
    media: dict[str, Positive] = Field(default_factory=dict)
    urls: Count = 0
    """Rows whose image is at a URL, also those that are left out."""
    set_sizes: dict[SetSize, Positive] | None = None
    retried: dict[str, Positive] = Field(default_factory=dict)
    """The earlier reasons of rows that were tried again, which no longer count."""
    not_in: dict[_Number, dict[Literal["same", "near"], Positive]] = Field(default_factory=dict)
    """Rows left out by the number of a corpus of `--not-in` that has their image; an image may be in several."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        counted = {
            "row_groups": sum(self.row_groups) == self.rows,
            "labels": sum(self.labels.values()) == self._count_labels(),
            "set_sizes": self.set_sizes is None or sum(self.set_sizes.values()) == self.rows,
            "captioned": self.captioned <= self.rows and (self.kind != "captions" or self.captioned == self.rows),
            "words": sum(self.words.values()) == self.texts and all(int(n) <= MOST_WORDS for n in self.words),
            "sha256": (self.sha256 is None) == (self.rows == 0),
            "bytes": (self.bytes == 0) == (self.rows == 0),
        }
        for name, agrees in counted.items():
            if not agrees:
                raise ValueError(f"{name}: contradicts the number of rows")
        return self

    def _count_labels(self) -> int:
        if self.set_sizes is not None:
            return sum(int(count) * rows for count, rows in self.set_sizes.items())
        return self.rows if self.kind == "labels" else 0


def read_in_order(out: Path, read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``read`` of each item in order; from a corpus on another file system, several are read at a time."""
    if isinstance(out, RemotePath):
        return map_ahead(read, items, threads=READERS, ahead=READERS)
    return map(read, items)


def find_begun(out: Path, units: Sequence[Unit]) -> list[Unit]:
    """Return the units that have a marker, sound or not, by one listing of their folder."""
    there = list_names(out / PARTS)
    return [unit for unit in units if unit.marker.removeprefix(f"{PARTS}/") in there]


def read_finished(out: Path, unit: Unit, classes: int) -> PartMarker | str | None:
    """Return the marker of a unit, or what is wrong with it or its shard; None if the unit is not finished."""
    try:
        marker = read_marker(out, unit, classes)
    except UniclError as error:
        return f"{error.message}: rebuilding its shard"
    if marker is None:
        return None
    problem = find_part_damage(out, marker)
    return f"{problem}: rebuilding it" if problem else marker


def read_marker(out: Path, unit: Unit, classes: int) -> PartMarker | None:
    """Return the marker of a unit of a corpus with so many classes; None if the unit is not finished.

    UniclError if the marker is damaged or is not this unit's.
    """
    hint = "run the same `unicl prepare` command again: it rebuilds this shard"
    try:
        marker = read_document(out / unit.marker, PartMarker, hint, MAX_MARKER)
    except FileNotFoundError:
        return None
    if problem := _find_difference(marker, unit, classes):
        raise UniclError(f"{out / unit.marker}: damaged: {problem}", hint)
    return marker


def find_part_damage(out: Path, marker: PartMarker) -> str | None:
    """Return what is wrong with the shard of a marker, judged by its size; None if it is sound, or has no rows."""
    return find_damage(out, marker.file, marker.bytes) if marker.rows else None


def _find_difference(marker: PartMarker, unit: Unit, classes: int) -> str | None:
    wanted: Mapping[str, Any] = {
        "file": unit.shard,
        "split": unit.split,
        "source": unit.source,
        "kind": unit.kind,
        "retried": dict(unit.retried),
    }
    for name, value in wanted.items():
        if getattr(marker, name) != value:
            return f"{name}: is {getattr(marker, name)!r} instead of {value!r}"
    if marker.rows + sum(marker.rejected.values()) != unit.rows:
        return f"rows: {marker.rows} and {sum(marker.rejected.values())} left out are not the {unit.rows} of its unit"
    if max(marker.row_groups, default=0) > unit.group_rows:
        return f"row_groups: {max(marker.row_groups)} rows are more than {unit.group_rows}"
    if any(int(label) >= classes for label in marker.labels):
        return f"labels: has a class outside the {classes} of the corpus"
    return None
