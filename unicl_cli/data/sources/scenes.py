"""Scenes of four coloured shapes with their boxes, drawn on demand: captions, referring expressions, questions."""

import hashlib
import io
import json
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from PIL import Image, ImageChops

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.sources.shapes import COLOURS, ORDER, PAIRS, SHAPES, UNSEEN, draw_shape
from unicl_cli.errors import UniclError

Task = Literal["captions", "refer", "question"]
KNOWN = len(ORDER) - len(UNSEEN)
"""Scenes show the pairs of colour and shape that the training images of `shapes` show."""
PLACES = ((0.26, 0.26), (0.26, 0.74), (0.74, 0.26), (0.74, 0.74))
"""Centres of the four quarters of an image of side 1, those on the left first."""
SIDES = ("left", "right")
ANSWERS = (*COLOURS, *SHAPES)


class Thing(NamedTuple):
    """A shape in an image of side 1: the number of its class in PAIRS, its centre, its radius."""

    pair: int
    x: float
    y: float
    radius: float

    @property
    def words(self) -> tuple[str, str]:
        """Colour and shape."""
        colour, shape = ORDER[self.pair]
        return list(COLOURS)[colour], SHAPES[shape]


class Scene(NamedTuple):
    """A row before it is drawn; ``target`` is the number of the thing that the text refers to."""

    things: tuple[Thing, ...]
    text: str
    label: int = NO_LABEL
    target: int | None = None


class Scenes:
    """A source of square PNG images of ``size`` pixels with boxes, each a function of (seed, task, split, number)."""

    splits: Sequence[str] = ("train", "test")
    templates: Sequence[str] = ("a {}",)
    media = ("boxes",)

    def __init__(self, task: Task, size: int, counts: dict[str, int], seed: int) -> None:
        self.task, self.size, self.counts, self.seed = task, size, counts, seed
        self.classes: Sequence[ClassName] = tuple(ClassName(a, (a,)) for a in ANSWERS) if task == "question" else ()

    def rows(self, split: str) -> list[Row]:
        """Return the rows; ``ref`` is ``split/number``."""
        scenes = ((number, self.scene(split, number)) for number in range(self.counts[split]))
        return [Row(f"{split}/{n:06d}", f"{split}/{n}", (scene.text,), scene.label) for n, scene in scenes]

    def read(self, row: Row) -> dict[str, bytes]:
        """Draw the image as PNG; ``boxes`` is JSON: width and height, boxes of four corner numbers, target."""
        split, number = row.ref.split("/")
        scene, out = self.scene(split, int(number)), io.BytesIO()
        draw_things(scene.things, self.size, self._rng("pixels", split, number)).save(out, "PNG")
        corners = [(t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius) for t in scene.things]
        found = {
            "width": self.size,
            "height": self.size,
            "boxes": [[round(self.size * value, 2) for value in box] for box in corners],
            "target": scene.target,
        }
        return {"image": out.getvalue(), "boxes": json.dumps(found).encode()}

    def _rng(self, *key: object) -> random.Random:
        words = "/".join(map(str, (self.seed, self.task, *key)))
        return random.Random(int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little"))

    def scene(self, split: str, number: int) -> Scene:
        """Return a row's things and text; for the task refer the first two, one on either side, are identical."""
        rng = self._rng(split, number)
        pairs = rng.sample(range(KNOWN), 4)
        if self.task == "refer":
            pairs[1] = pairs[0]
        left, right = rng.sample(PLACES[:2], 2), rng.sample(PLACES[2:], 2)
        spots = (left[0], right[0], left[1], right[1])
        things = [
            Thing(pair, x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04), rng.uniform(0.14, 0.2))
            for pair, (x, y) in zip(pairs, spots, strict=True)
        ]
        if self.task == "refer":
            return referred(things, rng)
        rng.shuffle(things)
        return captioned(things, rng) if self.task == "captions" else questioned(things, rng)


def referred(things: Sequence[Thing], rng: random.Random) -> Scene:
    """Return a scene whose text names one of two identical things by its side: words and boxes are both needed."""
    side, order = rng.randrange(2), rng.sample(range(4), 4)
    text = f"the {PAIRS[things[0].pair].names[0]} on the {SIDES[side]}"
    return Scene(tuple(things[n] for n in order), text, target=order.index(side))


def captioned(things: Sequence[Thing], rng: random.Random) -> Scene:
    """Return a scene whose text lists all things, without a word that could be guessed from the others."""
    ordered = rng.sample(list(things), len(things))
    return Scene(tuple(things), " ".join(word for thing in ordered for word in thing.words))


def questioned(things: Sequence[Thing], rng: random.Random) -> Scene:
    """Return a scene with a question that has one answer: the colour of the only such shape, or the reverse.

    Where each colour and each shape is there twice, the question names a colour's shapes by place.
    """
    asked: list[tuple[str, str]] = []
    for thing in things:
        for wanted, by in ((0, 1), (1, 0)):
            if sum(other.words[by] == thing.words[by] for other in things) == 1:
                form = "what colour is the {}" if wanted == 0 else "what shape is {}"
                asked.append((form.format(thing.words[by]), thing.words[wanted]))
    corner = min(things, key=lambda thing: thing.x + thing.y)
    text, answer = rng.choice(asked or [("what colour is at the top left", corner.words[0])])
    return Scene(tuple(things), text, ANSWERS.index(answer))


def draw_things(things: Sequence[Thing], size: int, rng: random.Random) -> Image.Image:
    """Draw the things on a dark ground at twice the size, then box-reduce them and add noise, as `shapes` does."""
    side = 2 * size
    image = Image.new("RGB", (side, side), tuple(rng.randrange(10, 60) for _ in range(3)))
    for thing in things:
        draw_shape(image, ORDER[thing.pair], (side * thing.x, side * thing.y), side * thing.radius, rng)
    image = image.resize((size, size), Image.Resampling.BOX)
    noise = Image.frombytes("RGB", image.size, rng.randbytes(3 * size * size)).point([v // 16 for v in range(256)] * 3)
    return ImageChops.add(image, noise)


def scenes(
    *, kind: str, task: Task = "captions", size: int = 64, count: int = 4000, test: int = 500, seed: int = 0
) -> Scenes:
    """Four plain shapes in an image of ``size`` pixels, ``count`` for training and ``test`` for tests, with boxes.

    ``task``: captions that list all four; refer, which names one of two identical shapes by its side; question, whose
    answer is a colour or a shape, the row's label. The media `boxes` hold the boxes and the number of the one referred
    to.
    """
    if min(size, count, test) < 1:
        raise UniclError(
            f"scenes: size={size}, count={count}, test={test} must be positive", "set e.g. 'scenes?count=2000'"
        )
    wanted = "labels" if task == "question" else "captions"
    if kind != wanted:
        raise UniclError(f"scenes: task={task} makes {wanted}, not {kind}", f'use --{wanted} "scenes?task={task}"')
    return Scenes(task, size, {"train": count, "test": test}, seed)
