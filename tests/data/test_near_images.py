"""Nearly equal images: what the bands find equals all pairs, and pixels decide."""

import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scenes import CHANGES, change, draw_scene
from sklearn.datasets import load_digits

from unicl_cli.data import near_images
from unicl_cli.data.near_images import (
    MOST_BITS,
    SIMILAR,
    THUMB_BYTES,
    HashIndex,
    are_flat,
    as_hash,
    compare_thumbs,
    find_candidates,
    find_nearly_equal,
    make_thumbnail,
)
from unicl_cli.data.pictures import difference_hash


def thumb(image):
    return np.frombuffer(make_thumbnail(image), np.uint8)


def look(images):
    """Hashes, thumbnails, and which images show something."""
    hashes = np.array([as_hash(difference_hash(image)) for image in images], np.uint64)
    thumbs = np.stack([thumb(image) for image in images])
    return hashes, thumbs, ~are_flat(thumbs)


def nearly_equal(images, fixed=0):
    hashes, thumbs, usable = look(images)
    return find_nearly_equal(hashes, usable, lambda rows: thumbs[rows], fixed).earlier.tolist()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), portion=st.integers(1, 50))
def test_the_bands_find_all_pairs_within_four_bits_once(data, portion):
    base = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
    flips = st.lists(st.integers(0, 63), max_size=7, unique=True)
    hashes = [value ^ sum(1 << bit for bit in data.draw(flips)) for value in base for _ in range(3)]
    asked, kept = np.array(hashes[::2], np.uint64), np.array(hashes, np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_images, "_PORTION", portion)
        index = HashIndex(kept)
        pairs = [(int(a), int(b)) for left, right in index.find(asked) for a, b in zip(left, right, strict=True)]
        groups = index.group(asked)
    expected = {
        (n, m) for n, a in enumerate(asked.tolist()) for m, b in enumerate(hashes) if (a ^ b).bit_count() <= MOST_BITS
    }
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    assert [group.tolist() for group in groups] == [sorted(m for k, m in expected if k == n) for n in range(len(asked))]


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_copy_of_a_photo_is_nearly_equal_and_other_photos_are_not(how):
    scenes = [draw_scene(seed) for seed in range(20)]
    copies = [Image.open(io.BytesIO(change(scene, how))).convert("RGB") for scene in scenes]
    found = nearly_equal([*scenes, *copies])
    assert found[:20] == [-1] * 20
    right = [found[20 + n] == n for n in range(20)]
    assert sum(right) >= 18, found[20:]
    assert all(found[20 + n] in (n, -1) for n in range(20))
    assert nearly_equal([*scenes, *copies], fixed=20) == found


def test_images_of_one_colour_are_like_nothing():
    flat = [Image.new("RGB", (32, 32), colour) for colour in ("black", "white", "grey", "black", (3, 3, 3))]
    faint = [Image.linear_gradient("L").point([lift + v // 32 for v in range(256)]) for lift in (0, 10)]
    assert len({difference_hash(image) for image in flat}) == 1
    assert nearly_equal([*flat, *faint]) == [-1] * 7


def test_of_many_digits_with_near_hashes_none_is_taken_for_another():
    images = (load_digits().images[:500] * 15.9).astype(np.uint8)
    hashes, thumbs, usable = look(
        [Image.fromarray(image).resize((32, 32), Image.Resampling.NEAREST) for image in images]
    )
    assert find_candidates(hashes, usable).sum() > 50
    assert (find_nearly_equal(hashes, usable, lambda rows: thumbs[rows]).earlier < 0).all()


def circle(colour, ground="black", box=(6, 6, 26, 26)):
    image = Image.new("RGB", (32, 32), ground)
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def test_drawings_with_equal_hashes_are_told_apart_by_their_pixels():
    drawn = [circle("red"), circle("blue"), circle("white"), circle((90, 90, 90)), circle("red", box=(7, 7, 25, 27))]
    ramps = [Image.linear_gradient("L").point([v * most // 255 for v in range(256)]) for most in (255, 60)]
    assert nearly_equal([*drawn[:4], *ramps]) == [-1] * 6
    assert nearly_equal([circle("red"), circle((235, 8, 8))]) == [-1, 0]
    assert nearly_equal(drawn)[4] in (-1, 0)


def test_a_row_is_like_the_first_one_and_never_joined_by_a_chain():
    steps = [Image.blend(draw_scene(1), draw_scene(2), share) for share in np.linspace(0, 1, 25)]
    hashes, thumbs, usable = look(steps)
    found = find_nearly_equal(hashes, usable, lambda rows: thumbs[rows]).earlier
    kept = np.flatnonzero(found < 0)
    assert 1 < len(kept) < 25
    for row in np.flatnonzero(found >= 0):
        assert found[found[row]] == -1
        assert compare_thumbs(thumbs[row], thumbs[found[row]][None])[0] >= SIMILAR
    for a, b in combinations(kept.tolist(), 2):
        bits = int(np.bitwise_count(hashes[a] ^ hashes[b]))
        assert bits > MOST_BITS or compare_thumbs(thumbs[a], thumbs[b][None])[0] < SIMILAR


def test_a_crowd_is_compared_with_its_first_members_and_counted(monkeypatch):
    monkeypatch.setattr(near_images, "MOST_COMPARED", 5)
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (40, THUMB_BYTES), np.uint8)
    thumbs[39] = thumbs[2]
    found = find_nearly_equal(np.full(40, 7, np.uint64), np.ones(40, np.bool_), lambda rows: thumbs[rows])
    assert found.crowded == 34
    assert found.earlier.tolist() == [-1] * 39 + [2]


def test_only_rows_that_can_be_like_another_are_candidates():
    hashes = np.array([0b0, 0b1, 2**40 - 1, 0b11, 0xFFFF << 44], np.uint64)
    every = np.ones(5, np.bool_)
    assert find_candidates(hashes, every).tolist() == [True, True, False, True, False]
    assert find_candidates(hashes, every, fixed=4).tolist() == [False] * 5
    assert find_candidates(hashes, every, fixed=3).tolist() == [True, True, False, True, False]
    assert find_candidates(hashes, np.array([1, 0, 1, 0, 1], np.bool_)).tolist() == [False] * 5
    assert find_nearly_equal(hashes[:0], every[:0], lambda rows: np.empty((0, THUMB_BYTES), np.uint8)).crowded == 0
