"""scikit-learn's 1,797 handwritten digits, with labels, or with captions from measurements of each image."""

import hashlib
import io
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from functools import cached_property
from typing import Any

from PIL import Image

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.errors import UniclError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN = 1200
"""Number of images for training, at the start of the fixed order; the other 597 are for testing."""
TEMPLATES = (
    "a photo of the digit {}.",
    "the digit {}.",
    "a handwritten {}.",
    "the number {}.",
    "a scan of a handwritten {}.",
)
_SCALE = 4
_NAMED = (
    "a {weight} {tilt} {word}, {width}",
    "the digit {word} in {weight} strokes, {tilt}",
    "a {width} {word} written with a {weight} pen, {holes}",
    "handwritten {word}, {tilt}, {weight} lines",
    "a scan of the number {word}, {weight} and {width}",
    "{word}, {tilt}, {holes}",
)
_UNNAMED = (
    "a {weight} {tilt} digit, {width}",
    "a handwritten digit in {weight} strokes, {tilt}, {holes}",
    "a {width} number written with a {weight} pen, {holes}",
    "{weight} {tilt} handwriting, a digit {holes}",
    "a scan of a {weight} digit, {width}, {holes}",
)


class Digits:
    """A source of 8 x 8 images with 17 grey levels, enlarged (nearest) to 32 x 32 RGB PNG."""

    templates: Sequence[str] = TEMPLATES
    splits: Sequence[str] = ("train", "test")
    classes: Sequence[ClassName] = tuple(ClassName(str(n), (word,)) for n, word in enumerate(WORDS))

    def __init__(
        self, kind: str, chosen: frozenset[int], limit: int | None, named: float, *, coloured: bool = False
    ) -> None:
        self.kind, self.chosen, self.limit, self.named, self.coloured = kind, chosen, limit, named, coloured

    def rows(self, split: str) -> list[Row]:
        """Return the rows of a split; the test split has all ten digits, whatever ``classes`` and ``limit`` say."""
        numbers = self._train() if split == "train" else self._order[TRAIN:]
        return [self._row(split, number) for number in numbers]

    def read(self, row: Row) -> dict[str, bytes]:
        """Return the image as PNG."""
        number = int(row.ref)
        grey = [int(value) * 255 // 16 for value in self._pixels[number].ravel()]
        image = Image.new("L", (8, 8))
        image.putdata(grey)
        if self.coloured:
            ink, paper = (_colour(number, salt, value) for salt, value in (("ink", 1.0), ("paper", 0.4)))
            image = Image.composite(Image.new("RGB", (8, 8), ink), Image.new("RGB", (8, 8), paper), image)
        out = io.BytesIO()
        image.resize((8 * _SCALE, 8 * _SCALE), Image.Resampling.NEAREST).convert("RGB").save(out, "PNG")
        return {"image": out.getvalue()}

    def _train(self) -> list[int]:
        numbers = [n for n in self._order[:TRAIN] if self._digits[n] in self.chosen]
        if self.limit is None:
            return numbers
        return numbers[: self.limit] if self.kind == "labels" else numbers[len(numbers) - self.limit :]

    def _row(self, split: str, number: int) -> Row:
        texts = (self.caption(number),) if self.kind == "captions" else ()
        label = self._digits[number] if self.kind == "labels" else NO_LABEL
        return Row(f"{split}/{number:04d}", str(number), texts, label)

    def caption(self, number: int) -> str:
        """Return a sentence on the image's measured properties; it names the digit with probability ``named``."""
        facts = describe_digit(self._pixels[number].tolist())
        forms = _NAMED if _chance(number, "named") < self.named else _UNNAMED
        form = forms[int(_chance(number, "form") * len(forms))]
        return form.format(word=WORDS[self._digits[number]], **facts)

    @cached_property
    def _data(self) -> Any:
        from sklearn.datasets import load_digits  # 1 s, and only where images or labels are needed

        return load_digits()

    @property
    def _pixels(self) -> Any:
        return self._data.images  # (1797, 8, 8), 0 … 16

    @cached_property
    def _digits(self) -> list[int]:
        return self._data.target.tolist()

    @cached_property
    def _order(self) -> list[int]:
        """All image numbers in a fixed, stratified order: every stretch has the ten digits in proportion."""
        places: list[tuple[float, int]] = []
        for digit in range(10):
            members = [n for n, other in enumerate(self._digits) if other == digit]
            members.sort(key=lambda n: _chance(n, "order"))
            places += [((rank + 0.5) / len(members), n) for rank, n in enumerate(members)]
        return [n for _, n in sorted(places)]


def digits(
    *, kind: str, classes: str = "0-9", limit: int | None = None, named: float = 0.4, coloured: bool = False
) -> Digits:
    """Handwritten digits; ``classes`` (``"0-6"``, ``"1,3,7-9"``) and ``limit`` choose training images only.

    Label rows come from the start of one fixed training order and caption rows from its end, so that ``--labels
    digits?classes=0-6&limit=600 --captions digits?limit=300`` have no image in common. ``named`` is the share of
    captions that name their digit. ``coloured`` draws each image in two random hues, bright on dark, which say nothing
    about its class.
    """
    if limit is not None and limit < 1:
        raise UniclError(f"digits: limit={limit} leaves no images", "set a positive limit")
    if not 0 <= named <= 1:
        raise UniclError(f"digits: named={named} is out of range", "set a number from 0 to 1")
    return Digits(kind, _parse_classes(classes), limit, named, coloured=coloured)


def describe_digit(pixels: list[list[float]]) -> dict[str, str]:
    """Return words for ink, slant, width and holes of an 8 x 8 image with values 0 … 16."""
    inked = [(x, y, value) for y, line in enumerate(pixels) for x, value in enumerate(line)]
    ink = sum(value for _, _, value in inked)
    mean_x = sum(x * value for x, _, value in inked) / ink
    mean_y = sum(y * value for _, y, value in inked) / ink
    shear = sum((x - mean_x) * (y - mean_y) * value for x, y, value in inked)
    shear /= sum((y - mean_y) ** 2 * value for _, y, value in inked)
    columns = [x for x, _, value in inked if value > 4]
    width = max(columns) - min(columns) + 1
    holes = count_holes(pixels)
    return {
        "weight": _pick(ink / 64, (4.6, 5.3), ("thin", "medium", "thick")),
        "tilt": _pick(shear, (-0.02, 0.1), ("leaning right", "upright", "leaning left")),  # y points down
        "width": _pick(width, (5, 6), ("narrow", "regular", "wide")),
        "holes": ("without a loop", "with a loop", "with several loops")[min(holes, 2)],
    }


def count_holes(pixels: list[list[float]]) -> int:
    """Count regions of paper (value <= 4), connected along sides, that do not reach the edge."""
    paper = {(x, y) for y in range(-1, 9) for x in range(-1, 9)}
    paper -= {(x, y) for y, line in enumerate(pixels) for x, value in enumerate(line) if value > 4}
    regions = 0
    while paper:
        regions += 1
        reached = [paper.pop()]
        while reached:
            x, y = reached.pop()
            beside = {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} & paper
            paper -= beside
            reached += beside
    return regions - 1  # one of them is the outside


def _pick(value: float, bounds: tuple[float, float], words: tuple[str, str, str]) -> str:
    return words[sum(value >= bound for bound in bounds)]


def _colour(number: int, salt: str, value: float) -> tuple[int, int, int]:
    """Return the RGB colour of an image's ink or paper: a hue of its own, at the same brightness in all images."""
    red, green, blue = (round(255 * level) for level in hsv_to_rgb(_chance(number, salt), 0.8, value))
    return red, green, blue


def _chance(number: int, salt: str) -> float:
    """Return a number in [0, 1) that depends only on the image and the salt."""
    digest = hashlib.blake2b(f"digits/{salt}/{number}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def _parse_classes(text: str) -> frozenset[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise UniclError(f"digits: classes={text} cannot be read", "write digits and ranges: 0-6 or 1,3,7-9")
        chosen.update(range(int(first), int(last or first) + 1))
    if not chosen or not chosen <= set(range(10)):
        raise UniclError(f"digits: classes={text} is not in 0-9", "write digits and ranges: 0-6 or 1,3,7-9")
    return frozenset(chosen)
