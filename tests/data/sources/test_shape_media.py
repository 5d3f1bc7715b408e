"""Media of drawn shapes: what they show, and that they are the same on every machine."""

import hashlib
import io
import wave

import numpy as np
import pytest
from PIL import Image

from unicl_cli.contracts import Row
from unicl_cli.data.media import KINDS, check_media
from unicl_cli.data.sources.shapes import ORDER, SHAPES, shapes

HOT, COLD = 0, 2  # red, blue


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def sound_of(data):
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


ALL = ",".join(KINDS)


def read_all(media=ALL, count=48, size=32, **options):
    source = shapes(kind="images", media=media, count=count, test=1, size=size, **options)
    return [(ORDER[int(row.ref.split("/")[2])], source.read(row)) for row in source.rows("train")]


def test_the_images_are_those_of_a_source_without_media():
    plain = read_all(None, 12)
    assert digest(*(pixels(found["image"]) for _, found in plain)) == "5828b0c05e1393b1"
    assert [found["image"] for _, found in plain] == [found["image"] for _, found in read_all(count=12)]


def test_media_are_the_same_everywhere():
    found = [media for _, media in read_all(count=12)]
    assert digest(*(sound_of(of["audio"]) for of in found)) == "fd7593b2c95be8bc"
    assert digest(*(pixels(of["depth"]) for of in found)) == "0b17e6ac72f1e115"
    assert digest(*(pixels(of["thermal"]) for of in found)) == "f83865fca2943e92"
    assert digest(*(np.load(io.BytesIO(of["imu"])) for of in found)) == "23280db248555eec"


def test_a_medium_does_not_depend_on_the_others():
    together = [found["imu"] for _, found in read_all(count=4)]
    assert [found["imu"] for _, found in read_all("imu", 4)] == together
    assert [found["imu"] for _, found in read_all("imu", 4, seed=1)] != together


def test_media_are_files_of_their_kinds():
    for _, found in read_all(size=20):
        image = found.pop("image")
        check_media(found, found, image)
        assert all(pixels(found[kind]).shape == (20, 20) for kind in ("depth", "thermal"))
        assert pixels(found["depth"]).dtype == np.uint16


def test_depth_and_heat_show_the_scene():
    means = {HOT: [], COLD: []}
    for (colour, _), found in read_all(count=96):
        depth = pixels(found["depth"]).astype(int)
        near = depth < 1800  # mm: the shape stands before the floor
        assert 0.02 < near.mean() < 0.6
        floor = np.where(near, np.nan, depth)
        assert np.nanmean(floor[:4]) > np.nanmean(floor[-4:]) + 500
        heat = pixels(found["thermal"])
        if colour in means:
            means[colour].append(heat[near].mean())
    assert min(means[HOT]) > max(means[COLD]) + 50


def test_sounds_differ_in_length_and_say_the_class():
    """The nearest mean spectrum of the second syllable's end finds the shape far above chance (1 in 6)."""
    spectra, numbers = [], []
    for (_, shape), found in read_all("audio", 288):
        sound = sound_of(found["audio"]).astype(float)
        half = sound[-len(sound) // 2 :]
        bins = np.abs(np.fft.rfft(half, 16_384))[: 3500 * 16_384 // 16_000]
        spectra.append(np.log1p([part.mean() for part in np.array_split(bins, 24)]))
        numbers.append(shape)
    spectra, numbers = np.array(spectra), np.array(numbers)
    spectra -= spectra.mean(1, keepdims=True)
    learn = np.arange(len(numbers)) % 2 == 0
    means = np.array([spectra[learn & (numbers == shape)].mean(0) for shape in range(len(SHAPES))])
    nearest = ((spectra[~learn, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == numbers[~learn]).mean() > 0.7


def test_motions_of_a_class_swing_along_the_axes_of_its_shape():
    for (_, shape), found in read_all("imu"):
        values = np.load(io.BytesIO(found["imu"]))
        assert values.dtype == np.float32
        assert 150 <= len(values) <= 250
        assert values[:, 2].mean() == pytest.approx(9.81, abs=0.5)
        swings = values.std(0)
        assert (swings.argmax() in (0, 5)) == (shape == 0) or shape in (1, 5)


def test_a_row_is_read_alone():
    source = shapes(kind="labels", media="depth", count=5)
    row = source.rows("train")[3]
    assert source.read(Row("k", row.ref, (), 0)) == source.read(row)
