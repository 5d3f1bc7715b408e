"""A data set made on the spot: horizontal against vertical stripes."""

import io
from collections.abc import Sequence
from typing import NamedTuple

from unicl_cli.api import NO_LABEL, ClassName, Row


class Stripes(NamedTuple):
    kind: str
    rows_of_split: int
    splits: Sequence[str] = ("train", "test")
    classes: Sequence[ClassName] = (ClassName("h", ("horizontal",)), ClassName("v", ("vertical",)))
    templates: Sequence[str] | str = ("{} stripes",)

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
        return {"image": out.getvalue()}


def stripes(*, kind: str, rows: int = 20) -> Stripes:
    """Striped images, alternately horizontal and vertical."""
    return Stripes(kind, rows)
