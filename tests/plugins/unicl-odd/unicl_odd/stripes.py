"""A data set made on the spot: horizontal against vertical stripes, with a second modality on request."""

import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

from unicl_cli.api import NO_LABEL, ClassName, Row


class Stripes(NamedTuple):
    kind: str
    rows_of_split: int
    splits: Sequence[str] = ("train", "test")
    classes: Sequence[ClassName] = (ClassName("h", ("horizontal",)), ClassName("v", ("vertical",)))
    templates: Sequence[str] | str = ("{} stripes",)
    media: Sequence[str] = ()

    def rows(self, split: str) -> list[Row]:
        return [self._row(split, n) for n in range(self.rows_of_split)]

    def _row(self, split: str, n: int) -> Row:
        name = self.classes[n % 2].names[0]
        texts = (f"{name} stripes, {2 + n % 5} pixels wide",) if self.kind == "captions" else ()
        return Row(f"{split}/{n}", str(n), texts, n % 2 if self.kind == "labels" else NO_LABEL)

    def read(self, row: Row) -> dict[str, bytes]:
        from PIL import Image

        n = int(row.ref)
        image = Image.new("L", (32, 32))
        image.putdata([255 * ((y if n % 2 == 0 else x) // (2 + n % 5) % 2) for y in range(32) for x in range(32)])
        out = io.BytesIO()
        image.save(out, "PNG")
        found = {"image": out.getvalue()}
        if "profile" in self.media and n % 3 != 0:
            found["profile"] = profile_of(n)
        return found


def profile_of(n: int) -> bytes:
    """32 float32 values that differ from row to row; every third row of the data set has none."""
    return struct.pack("<32f", *((n * (at + 1)) % 7 / 7 for at in range(32)))


def stripes(*, kind: str, rows: int = 20, profile: bool = False) -> Stripes:
    """Striped images, alternately horizontal and vertical; with a ``profile`` of two rows in three."""
    return Stripes(kind, rows, media=("profile",) if profile else ())
