"""A data set for controls: shapes whose media are those of another image, so that nothing binds them.

unicl --plugin benchmarks/shuffled_media.py prepare --images "shuffled-shapes?media=audio" -o DIR
"""

from collections.abc import Sequence

from unicl_cli.contracts import ClassName, DatasetSource, Row
from unicl_cli.data.sources.shapes import shapes

STEP = 1009
"""Rows between an image and its media: a prime, so that their classes differ in all possible ways."""


class Shuffled:
    """The rows of a source, each with the media of another row of its split."""

    def __init__(self, source: DatasetSource, media: Sequence[str]) -> None:
        self.source, self.media = source, tuple(media)
        self.splits, self.templates = source.splits, source.templates
        self.classes: Sequence[ClassName] = source.classes
        self.place = {row.ref: (split, n) for split in self.splits for n, row in enumerate(source.rows(split))}

    def rows(self, split: str) -> Sequence[Row]:
        return self.source.rows(split)

    def read(self, row: Row) -> dict[str, bytes]:
        split, number = self.place[row.ref]
        rows = self.source.rows(split)
        other = self.source.read(rows[(number + STEP) % len(rows)])
        return {"image": self.source.read(row)["image"], **{name: other[name] for name in self.media}}


def shuffled(*, kind: str, media: str) -> Shuffled:
    """Shapes with the media of other images; ``media`` are kinds of media with commas between them."""
    return Shuffled(shapes(kind=kind, media=media), media.split(","))


PARTS = {"datasets": {"shuffled-shapes": shuffled}}
