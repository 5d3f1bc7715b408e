"""A data source of handwritten digits in colours, whose captions also have words that the image does not show.

    unicl --plugin benchmarks/coloured_digits.py prepare --captions coloured-digits --labels coloured-digits -o corpus

scikit-learn's 8 × 8 digits in one of six colours, shifted on a dark square of 16 px with noise. A caption has one of
four openings, in half of them the colour, the digit, and up to ``filler`` words of 40 that have nothing to do with it.
"""

import io
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from PIL import Image

from unicl_cli.api import NO_LABEL, ClassName, Row

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (255, 60, 60), "green": (60, 220, 80), "blue": (90, 110, 255),
    "yellow": (240, 220, 60), "purple": (190, 80, 230), "white": (240, 240, 240),
}  # fmt: skip
OPENINGS = ("a photo of a {}", "this is a {}", "look at the {}", "a {}")
FILLERS = tuple(
    a + b for a in ("lor", "ip", "dol", "am", "con", "ad", "el", "sed") for b in ("em", "us", "or", "it", "a")
)
TRAIN, COPIES, SIDE = 1400, 5, 16


class ColouredDigits:
    """1,400 digits for training, each ``COPIES`` times in other colours, places and words, and 397 for testing."""

    splits: Sequence[str] = ("train", "test")
    classes: Sequence[ClassName] = tuple(ClassName(word, (word,)) for word in WORDS)
    templates: Sequence[str] | str = ("a photo of a {}",)

    def __init__(self, kind: str, filler: int) -> None:
        self.kind, self.filler = kind, filler

    def rows(self, split: str) -> list[Row]:
        """Return captions for training, labels for testing."""
        if (self.kind == "captions") != (split == "train"):
            return []
        if split == "test":
            return [Row(f"test/{n:04d}", f"{n}/0", (), int(self._digits.target[n])) for n in self._order[TRAIN:]]
        return [self._row(number, copy) for copy in range(COPIES) for number in self._order[:TRAIN]]

    def _row(self, number: int, copy: int) -> Row:
        ref, word = f"{number}/{copy}", WORDS[int(self._digits.target[number])]
        draw = random.Random(f"{ref} text")
        named = f"{self._colour(ref)} {word}" if draw.random() < 0.5 else word
        more = draw.sample(FILLERS, draw.randrange(self.filler + 1))
        text = " ".join([draw.choice(OPENINGS).format(named), *more])
        return Row(f"train/{copy}/{number:04d}", ref, (text,), NO_LABEL)

    def read(self, row: Row) -> dict[str, bytes]:
        """Draw an image and return it as PNG."""
        number, draw = int(row.ref.partition("/")[0]), random.Random(f"{row.ref} image")
        colour = COLOURS[self._colour(row.ref)]
        grey = Image.new("L", (8, 8))
        grey.putdata([int(value) * 255 // 16 for value in self._digits.images[number].ravel()])
        grey = grey.resize((12, 12), Image.Resampling.BILINEAR)
        image = Image.new("RGB", (SIDE, SIDE))
        image.paste(colour, (draw.randrange(5), draw.randrange(5)), grey)
        noise = [int(draw.gauss(0, 25)) for _ in range(3 * SIDE * SIDE)]
        values = bytes(max(0, min(255, value + more)) for value, more in zip(image.tobytes(), noise, strict=True))
        out = io.BytesIO()
        Image.frombytes("RGB", (SIDE, SIDE), values).save(out, "PNG")
        return {"image": out.getvalue()}

    def _colour(self, ref: str) -> str:
        return random.Random(f"{ref} colour").choice(list(COLOURS))

    @cached_property
    def _digits(self) -> Any:
        from sklearn.datasets import load_digits

        return load_digits()

    @cached_property
    def _order(self) -> list[int]:
        numbers = list(range(len(self._digits.target)))
        random.Random("order").shuffle(numbers)
        return numbers


def build_coloured_digits(*, kind: str, filler: int = 6) -> ColouredDigits:
    """Coloured handwritten digits with captions that also have up to ``filler`` words of no use."""
    return ColouredDigits(kind, filler)


PARTS = {"datasets": {"coloured-digits": build_coloured_digits}}
