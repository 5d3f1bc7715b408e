"""Coloured, textured shapes drawn on demand: 48 classes, with more in captions than in labels, and most in tests."""

import hashlib
import io
import math
import random
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.sources.media_files import read_kinds
from unicl_cli.data.sources.shape_media import Scene, make_media
from unicl_cli.errors import UniclError

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "cyan": (40, 210, 220),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("plain", "striped", "dotted", "checked")
TEMPLATES = ("a photo of the {}.", "a photo of a {}.", "a {}.", "there is a {} here.")
CAPTIONS = (
    "a {texture} {name}",
    "a photo of the {texture} {name}",
    "a picture with a {texture} {name} on a dark ground",
    "one {name}, {texture}",
)
_NOISE = [value // 16 for value in range(256)] * 3
_PAIRS = [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))]
_RESIDUE = {pair: (pair[0] - pair[1]) % 4 for pair in _PAIRS}
UNSEEN = [pair for pair in _PAIRS if _RESIDUE[pair] == 0]
"""12 pairs that no training image shows; their colours and shapes do occur in other pairs."""
LABELLED = [pair for pair in _PAIRS if _RESIDUE[pair] == 1 or (_RESIDUE[pair] == 2 and pair[0] < 4)]
"""18 pairs of label rows: half of the pairs seen in training."""
CAPTIONED = [pair for pair in _PAIRS if pair not in UNSEEN and pair not in LABELLED]
"""18 pairs that only caption rows show."""
ORDER = [*LABELLED, *CAPTIONED, *UNSEEN]
"""Class number -> pair: 0-17 have training labels, 18-35 only captions, 36-47 are in no training image."""


PAIRS = tuple(ClassName(f"{list(COLOURS)[c]}-{SHAPES[s]}", (f"{list(COLOURS)[c]} {SHAPES[s]}",)) for c, s in ORDER)
ATTRIBUTES = tuple(
    ClassName(name, (name,), group)
    for group, names in (("colour", COLOURS), ("shape", SHAPES), ("texture", TEXTURES))
    for name in names
)


class Shapes:
    """Square PNG images of ``size`` pixels and their media, each a function of (seed, kind, split, number)."""

    splits: Sequence[str] = ("train", "test")
    templates: Sequence[str] = TEMPLATES
    classes: Sequence[ClassName] = PAIRS

    def __init__(
        self,
        kind: str,
        size: int,
        counts: dict[str, int],
        seed: int,
        *,
        captions: bool,
        attributes: bool,
        media: Sequence[str] = (),
    ) -> None:
        self.kind, self.size, self.counts, self.seed, self.captions = kind, size, counts, seed, captions
        self.attributes = attributes and kind == "labels"
        self.media = tuple(media)
        if self.attributes:
            self.classes = ATTRIBUTES

    def rows(self, split: str) -> list[Row]:
        """Return rows with the classes in turn; ``ref`` is ``split/number/class/texture``."""
        known = len(ORDER) if split == "test" else len(LABELLED if self.kind == "labels" else LABELLED + CAPTIONED)
        return [self._row(split, number, number % known) for number in range(self.counts[split])]

    def read(self, row: Row) -> dict[str, bytes]:
        """Draw the image and return it as PNG, with its media."""
        split, number, label, texture = row.ref.split("/")
        rng = self._rng(split, int(number))
        rng.random()  # the first number chose the texture, the second the sentence
        rng.random()
        image, scene = draw(ORDER[int(label)], TEXTURES[int(texture)], self.size, rng)
        out = io.BytesIO()
        image.save(out, "PNG")
        media = make_media(self.media, scene, lambda medium: self._rng(split, f"{number}/{medium}"))
        return {"image": out.getvalue(), **media}

    def _row(self, split: str, number: int, label: int) -> Row:
        rng = self._rng(split, number)
        texture = int(rng.random() * len(TEXTURES))
        form = CAPTIONS[int(rng.random() * len(CAPTIONS))]
        text = form.format(texture=TEXTURES[texture], name=PAIRS[label].names[0])
        texts = (text,) if self.kind == "captions" or (self.kind == "labels" and self.captions) else ()
        ref = f"{split}/{number}/{label}/{texture}"
        key = f"{split}/{number:06d}"
        if self.attributes:
            colour, shape = ORDER[label]
            first = len(COLOURS)
            return Row(key, ref, texts, NO_LABEL, (colour, first + shape, first + len(SHAPES) + texture))
        return Row(key, ref, texts, label if self.kind == "labels" else NO_LABEL)

    def _rng(self, split: str, number: int | str) -> random.Random:
        digest = hashlib.blake2b(f"{self.seed}/{self.kind}/{split}/{number}".encode(), digest_size=8).digest()
        return random.Random(int.from_bytes(digest, "little"))  # its numbers are the same on every Python


def shapes(
    *,
    kind: str,
    size: int = 32,
    count: int = 4000,
    test: int = 960,
    seed: int = 0,
    captions: bool = False,
    attributes: bool = False,
    media: str | None = None,
) -> Shapes:
    """8 colours x 6 shapes x 4 textures on dark noise: ``count`` training and ``test`` test images, ``size`` pixels.

    A class is a colour and a shape; only captions name the texture. With ``captions``, label rows show one too. In
    training, label rows show classes 0-17, and caption rows and images alone show classes 0-35. The test split shows
    all 48, so 36-47 are unseen. With ``attributes``, a label row has three labels: its colour, its shape, its texture.

    ``media`` are kinds of media beside each image, with commas between them: `depth` and `thermal` show its scene,
    `audio` says colour and shape in two syllables of one of many voices, `imu` is a motion for the class.
    """
    if min(size, count, test) < 1:
        raise UniclError(
            f"shapes: size={size}, count={count}, test={test} must be positive", "set e.g. 'shapes?count=2000'"
        )
    kinds = read_kinds(media, "shapes")
    counts = {"train": count, "test": test}
    return Shapes(kind, size, counts, seed, captions=captions, attributes=attributes, media=kinds)


def draw(pair: tuple[int, int], texture: str, size: int, rng: random.Random) -> tuple[Image.Image, Scene]:
    """Draw a shape at a random place, scale and angle on a dark ground, at twice the size, then box-reduced."""
    side = 2 * size
    ground = tuple(rng.randrange(10, 60) for _ in range(3))
    colour = _vary(pair, rng)
    image = Image.new("RGB", (side, side), ground)
    radius = side * rng.uniform(0.26, 0.42)
    centre = (rng.uniform(radius, side - radius), rng.uniform(radius, side - radius))
    mask = _mask(SHAPES[pair[1]], side, centre, radius, rng.uniform(-0.35, 0.35))
    dark = tuple(value * 45 // 100 for value in colour)
    image.paste(colour, (0, 0), mask)
    image.paste(dark, (0, 0), ImageChops.multiply(mask, _pattern(texture, side, rng)))
    image = image.resize((size, size), Image.Resampling.BOX)
    noise = Image.frombytes("RGB", image.size, rng.randbytes(3 * size * size)).point(_NOISE)
    small = mask.resize((size, size), Image.Resampling.BOX)
    return ImageChops.add(image, noise), Scene(*pair, small, radius / side)


def draw_shape(
    image: Image.Image, pair: tuple[int, int], centre: tuple[float, float], radius: float, rng: random.Random
) -> None:
    """Draw one plain shape into a square image, at a random angle."""
    colour = _vary(pair, rng)
    image.paste(colour, (0, 0), _mask(SHAPES[pair[1]], image.width, centre, radius, rng.uniform(-0.35, 0.35)))


def _vary(pair: tuple[int, int], rng: random.Random) -> tuple[int, ...]:
    """Return the colour of a class, each channel off by up to 15."""
    return tuple(max(0, min(255, value + rng.randrange(-15, 16))) for value in list(COLOURS.values())[pair[0]])


class Placed(NamedTuple):
    """A shape of a scene: its colour, shape and texture, and its mask, an image "L" with 0 and 255."""

    colour: str
    shape: str
    texture: str
    mask: Image.Image


def draw_scene(size: int, count: int, rng: random.Random) -> tuple[Image.Image, list[Placed]]:
    """Draw up to ``count`` shapes of all classes on one square ground of ``size`` pixels; later ones lie on top.

    A mask shows what is not covered. A shape that would cover more than half of another is tried elsewhere, 20 times,
    and then left out.
    """
    image = Image.new("RGB", (size, size), tuple(rng.randrange(10, 60) for _ in range(3)))
    placed: list[tuple[Placed, int]] = []
    for _ in range(count):
        for _ in range(20):
            lists = tuple(COLOURS), SHAPES, TEXTURES
            name, shape, texture = (names[int(rng.random() * len(names))] for names in lists)
            radius = 2 * size * rng.uniform(0.08, 0.2)
            centre = (rng.uniform(radius, 2 * size - radius), rng.uniform(radius, 2 * size - radius))
            large = _mask(shape, 2 * size, centre, radius, rng.uniform(-0.35, 0.35))
            mask = large.resize((size, size), Image.Resampling.BOX).point([0] * 128 + [255] * 128)
            rest = [(item._replace(mask=ImageChops.subtract(item.mask, mask)), whole) for item, whole in placed]
            if all(2 * _pixels(item.mask) > whole for item, whole in rest):
                placed = [*rest, (Placed(name, shape, texture, mask), _pixels(mask))]
                colour = tuple(max(0, min(255, value + rng.randrange(-15, 16))) for value in COLOURS[name])
                image.paste(colour, (0, 0), mask)
                dark = tuple(value * 45 // 100 for value in colour)
                image.paste(dark, (0, 0), ImageChops.multiply(mask, _pattern(texture, size, rng)))
                break
    noise = Image.frombytes("RGB", image.size, rng.randbytes(3 * size * size)).point(_NOISE)
    return ImageChops.add(image, noise), [item for item, _ in placed]


def _pixels(mask: Image.Image) -> int:
    return mask.histogram()[255]


def _mask(shape: str, side: int, centre: tuple[float, float], radius: float, angle: float) -> Image.Image:
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    x, y = centre
    if shape in ("circle", "ring"):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            hole = radius * 0.5
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        return mask
    points = [(x + radius * r * math.sin(a + angle), y - radius * r * math.cos(a + angle)) for r, a in _outline(shape)]
    pen.polygon(points, fill=255)
    return mask


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners as (radius, angle from above), in units of the shape's radius."""
    if shape == "triangle":
        return [(1.0, 2 * math.pi * k / 3) for k in range(3)]
    if shape == "square":
        return [(1.0, math.pi / 4 + math.pi * k / 2) for k in range(4)]
    if shape == "star":
        return [(1.0 if k % 2 == 0 else 0.4, math.pi * k / 5) for k in range(10)]
    arm, corner = math.atan(0.3), 0.3 * math.sqrt(2)
    turns = [math.pi * k / 2 for k in range(4)]
    return [point for t in turns for point in ((1.0, t - arm), (1.0, t + arm), (corner, t + math.pi / 4))]


def _pattern(texture: str, side: int, rng: random.Random) -> Image.Image:
    """Return the mask of a texture: white where it darkens the shape."""
    pattern = Image.new("L", (side, side))
    pen = ImageDraw.Draw(pattern)
    step = max(4, side // 8)
    shift = rng.randrange(step)
    starts = range(-shift, side, step)
    if texture == "striped":
        for y in starts:
            pen.rectangle((0, y, side, y + step // 2 - 1), fill=255)
    if texture == "dotted":
        for x, y in product(starts, starts):
            pen.ellipse((x, y, x + step * 0.55, y + step * 0.55), fill=255)
    if texture == "checked":
        for (column, x), (line, y) in product(enumerate(starts), enumerate(starts)):
            pen.rectangle((x, y, x + step - 1, y + step - 1), fill=255 * ((column + line) % 2))
    return pattern
