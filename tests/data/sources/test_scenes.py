"""Scenes: four shapes where their boxes say, texts that are true of them, the same at each reading."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.sources.scenes import ANSWERS, KNOWN, SIDES, scenes
from unicl_cli.data.sources.shapes import COLOURS, PAIRS
from unicl_cli.errors import UniclError


def read(source, row):
    found = source.read(row)
    return np.asarray(Image.open(io.BytesIO(found["image"]))).astype(int), json.loads(found["boxes"])


@pytest.mark.parametrize("task", ["captions", "refer", "question"])
def test_a_row_is_drawn_the_same_each_time_and_its_boxes_hold_its_shapes(task):
    kind = "labels" if task == "question" else "captions"
    source, again = (scenes(kind=kind, task=task, size=48, count=12, test=3) for _ in range(2))
    assert source.rows("train") == again.rows("train")
    assert len(source.rows("test")) == 3
    assert source.rows("train")[0].texts != scenes(kind=kind, task=task, seed=1).rows("train")[0].texts
    for row in source.rows("train"):
        pixels, boxes = read(source, row)
        assert read(again, row)[1] == boxes
        assert pixels.shape == (48, 48, 3)
        outside = np.ones((48, 48), bool)
        things = source.scene(*[f(x) for f, x in zip((str, int), row.ref.split("/"), strict=True)]).things
        for (x1, y1, x2, y2), thing in zip(boxes["boxes"], things, strict=True):
            assert 0 <= x1 < x2 <= 48
            assert 0 <= y1 < y2 <= 48
            part = np.s_[max(0, int(y1) - 1) : int(y2) + 2, max(0, int(x1) - 1) : int(x2) + 2]  # edges are antialiased
            outside[part] = False
            bright = pixels[part][pixels[part].max(-1) > 90]
            assert len(bright) > 10
            assert np.abs(np.median(bright, 0) - COLOURS[thing.words[0]]).max() < 60
            assert thing.pair < KNOWN
        assert pixels[outside].max() < 90, "nothing is drawn outside of the boxes"


def test_captions_list_the_four_things():
    source = scenes(kind="captions", count=20)
    for row in source.rows("train"):
        names = [PAIRS[thing.pair].names[0] for thing in source.scene("train", int(row.ref.split("/")[1])).things]
        words = row.texts[0].split()
        assert sorted(names) == sorted(" ".join(words[n : n + 2]) for n in range(0, 8, 2))
        assert row.label == NO_LABEL


def test_an_expression_names_one_of_two_like_things_by_its_side():
    source = scenes(kind="captions", task="refer", count=60)
    sides, places = Counter(), Counter()
    for row in source.rows("train"):
        scene = source.scene("train", int(row.ref.split("/")[1]))
        named = scene.things[scene.target]
        alike = [thing for thing in scene.things if thing.pair == named.pair]
        assert len(alike) == 2
        side = SIDES[named.x > 0.5]
        assert row.texts[0] == f"the {PAIRS[named.pair].names[0]} on the {side}"
        assert (alike[0].x > 0.5) != (alike[1].x > 0.5)
        assert read(source, row)[1]["target"] == scene.target
        sides[side] += 1
        places[scene.target] += 1
    assert min(sides.values()) > 15
    assert len(places) == 4


def test_a_question_has_one_answer():
    source = scenes(kind="labels", task="question", count=200)
    assert [each.key for each in source.classes] == list(ANSWERS)
    for row in source.rows("train"):
        things = source.scene("train", int(row.ref.split("/")[1])).things
        text, answer = row.texts[0], ANSWERS[row.label]
        if text == "what colour is at the top left":
            found = {min(things, key=lambda thing: thing.x + thing.y).words[0]}
        else:
            by = text.split()[-1]
            want = 0 if "colour" in text else 1
            found = {thing.words[want] for thing in things if thing.words[1 - want] == by}
        assert found == {answer}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "labels"}, "task=captions makes captions, not labels"),
        ({"kind": "captions", "task": "question"}, "task=question makes labels, not captions"),
        ({"kind": "images"}, "not images"),
        ({"kind": "captions", "count": 0}, "must be positive"),
    ],
)
def test_a_wrong_kind_or_size_is_refused(options, words):
    with pytest.raises(UniclError, match=words):
        scenes(**options)
