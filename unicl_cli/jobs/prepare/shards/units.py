"""Units of work of `prepare`: a planned shard, the cut of a source into them, and all that a worker needs for one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from unicl_cli.contracts import Row
from unicl_cli.data.fetch import Fetcher

PARTS = "parts"
"""The folder of a corpus for what is written beside each shard: markers, and digests while there are any."""
MAX_UNIT_ROWS = 8192
MAX_GROUP_ROWS = 2048
"""Maximum number of rows of a shard and of a row group."""


class Unit(NamedTuple):
    """A planned shard: ``rows`` rows of a permuted split, from ``first`` on; ``name`` is its file without suffix.

    A unit of `--retry-failed` has the rows with these ``numbers`` instead; ``retried`` counts why they were left out.
    """

    name: str
    split: str
    source: str
    kind: str
    first: int
    rows: int
    group_rows: int
    numbers: tuple[int, ...] = ()
    retried: tuple[tuple[str, int], ...] = ()

    @property
    def shard(self) -> str:
        return f"data/{self.split}/{self.name}.parquet"

    @property
    def marker(self) -> str:
        return f"{PARTS}/{self.split}.{self.name}.json"

    @property
    def rejects(self) -> str:
        return rejects_of(self.split, self.name)

    @property
    def hashes(self) -> str:
        return f"{PARTS}/{self.split}.{self.name}.sha256"

    @property
    def signatures(self) -> str:
        return f"{PARTS}/{self.split}.{self.name}.near"

    @property
    def staged(self) -> str:
        return f"parts/{self.split}.{self.name}.arrow"


def rejects_of(split: str, name: str) -> str:
    """Return the file in a corpus that lists the rows which the unit ``name`` left out."""
    return f"rejects/{split}.{name}.jsonl"


def cut_into_units(
    source: str, kind: str, rows: Mapping[str, int], *, unit_rows: int, group_rows: int
) -> Iterator[Unit]:
    """Yield the units of a source: the ``rows`` of each split, cut in order, the last unit being shorter."""
    for split, count in rows.items():
        starts = range(0, count, unit_rows)
        for number, first in enumerate(starts):
            file = f"{source}-{kind}-{number:05d}-of-{len(starts):05d}"
            yield Unit(file, split, source, kind, first, min(unit_rows, count - first), group_rows)


class Work(NamedTuple):
    """A unit with all that a worker needs: ``src`` rebuilds the source.

    ``size`` is the largest short side of an image, ``min_side`` the smallest. ``gone`` maps keys of rows that are left
    out as duplicates to the row that stays; the images of ``nearly`` of them are not the same byte for byte, and
    ``leaks`` has the split of the row that stays where it is another. ``media`` is true for every unit of a corpus with
    a column of media. ``groups`` are the groups of classes of a corpus with label sets; None in another. ``fetch``
    downloads the images of rows with a URL; None if no row has one. ``near`` asks for signatures of the images besides
    their digests. With ``not_in``, images of the corpora of `--not-in` are left out: their index lies in ``out``. With
    ``compared``, images that are downloaded are those that were compared before.
    """

    unit: Unit
    out: Path
    src: str
    rows: list[Row]
    size: int | None
    raw_text: bool
    gone: Mapping[str, str]
    min_side: int = 0
    media: bool = False
    groups: tuple[str, ...] | None = None
    fetch: Fetcher | None = None
    per_host: int = 1
    near: bool = False
    not_in: bool = False
    nearly: frozenset[str] = frozenset()
    leaks: Mapping[str, str] = {}
    compared: bool = False
