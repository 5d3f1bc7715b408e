"""Sources for `targets.py`: shapes as label sets with annotations left out, as repeated rows, as a tree, with a tail.

Names of a local plugin: `unicl --plugin benchmarks/shape_rows.py prepare --labels 'shape-sets?known=0.5' …`.
"""

import random
from collections.abc import Sequence
from typing import Literal

from unicl_cli.contracts import ClassName, Row
from unicl_cli.data.sources.shapes import ATTRIBUTES, ORDER, PAIRS, SHAPES, Shapes

SEEN = 18
"""The classes of `shapes` that label rows show in training."""
RAREST = 6
"""The last classes of them, which `shape-tail` has fewest rows of."""


class ShapeSets(Shapes):
    """Colour, shape and texture of each image; a training row knows each of them with the chance ``known``.

    ``form`` sets: one row an image. ``form`` repeat: one row a label, as a list without label sets would have it.
    """

    def __init__(self, counts: dict[str, int], known: float, form: str) -> None:
        super().__init__("labels", 32, counts, 0, captions=False, attributes=True)
        self.chance, self.form = known, form
        if form == "repeat":
            self.classes = tuple(item._replace(group="") for item in ATTRIBUTES)

    def rows(self, split: str) -> list[Row]:
        whole = [self._hide(row) if split == "train" else row for row in super().rows(split)]
        if self.form == "sets":
            return whole
        return [
            Row(f"{row.key}/{label}", row.ref, row.texts, label)
            for row in whole
            for label in row.labels or (row.label,)
        ]

    def _hide(self, row: Row) -> Row:
        coin = random.Random(row.key)
        kept = [label for label in row.labels if coin.random() < self.chance] or [coin.choice(row.labels)]
        known = tuple(ATTRIBUTES[label].group for label in kept)
        if len(kept) == 1:
            return row._replace(label=kept[0], labels=(), known=known)
        return row._replace(labels=tuple(kept), known=known)


class ShapeTree(Shapes):
    """The 18 coloured shapes of label rows below the shape they are; some training rows say only the shape.

    ``form`` tree: ranks and parents. ``form`` flat: the shapes are classes beside the others. ``form`` leaves: rows
    that say only the shape are left out, and so are the classes of shapes.
    """

    def __init__(self, counts: dict[str, int], inner: float, form: str) -> None:
        super().__init__("labels", 32, counts, 0, captions=False, attributes=False)
        self.inner, self.form = inner, form
        leaves = [
            ClassName(item.key, item.names, "coloured shape", SHAPES[ORDER[number][1]])
            for number, item in enumerate(PAIRS[:SEEN])
        ]
        tree = [*leaves, *(ClassName(name, (name,), "shape") for name in SHAPES)]
        plain = leaves if form == "leaves" else tree
        self.classes: Sequence[ClassName] = tree if form == "tree" else [ClassName(c.key, c.names) for c in plain]

    def rows(self, split: str) -> list[Row]:
        if split != "train":
            return [row for row in super().rows(split) if row.label < SEEN]
        return [found for row in super().rows(split) if (found := self._raise(row)) is not None]

    def _raise(self, row: Row) -> Row | None:
        """Return the row, now and then labelled by its shape alone; None for such a row where they are left out."""
        if random.Random(row.key).random() >= self.inner:
            return row
        if self.form == "leaves":
            return None
        known = ("shape",) if self.form == "tree" else None
        return row._replace(label=SEEN + ORDER[row.label][1], known=known)


class ShapeTail(ShapeTree):
    """The 18 coloured shapes of label rows, of which the first stands ``ratio`` times as often as the last."""

    def __init__(self, counts: dict[str, int], ratio: float) -> None:
        super().__init__(counts, 0, "leaves")
        self.ratio = ratio

    def _raise(self, row: Row) -> Row | None:
        chance = self.ratio ** (-row.label / (SEEN - 1))
        return row if random.Random(row.key).random() < chance else None


def shape_sets(
    *, kind: str, count: int = 3000, test: int = 960, known: float = 1.0, form: Literal["sets", "repeat"] = "sets"
) -> ShapeSets:
    """Colour, shape and texture of drawn shapes, each annotated with the chance ``known``."""
    del kind
    return ShapeSets({"train": count, "test": test}, known, form)


def shape_tree(
    *, kind: str, count: int = 3000, test: int = 960, inner: float = 0.3, form: Literal["tree", "flat", "leaves"]
) -> ShapeTree:
    """Coloured shapes below their shape; the share ``inner`` of training rows says only the shape."""
    del kind
    return ShapeTree({"train": count, "test": test}, inner, form)


def shape_tail(*, kind: str, count: int = 9000, test: int = 960, ratio: float = 100) -> ShapeTail:
    """Coloured shapes whose number falls from class to class."""
    del kind
    return ShapeTail({"train": count, "test": test}, ratio)


PARTS = {"datasets": {"shape-sets": shape_sets, "shape-tree": shape_tree, "shape-tail": shape_tail}}
