"""JPEGs by the fast decoder: Pillow's pixels bit for bit, and whatever is odd or damaged left to Pillow."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from unicl_cli.data import decoding
from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.pictures import ImageError, decode


@pytest.fixture
def fast(monkeypatch):
    """A list with an entry for each file that the fast decoder has answered for."""
    answered: list[int] = []
    own = decoding._decode_plain_jpeg

    def counting(data):
        found = own(data)
        answered.extend([1] if found is not None else [])
        return found

    monkeypatch.setattr(decoding, "_decode_plain_jpeg", counting)
    return answered


def photo(width=90, height=70, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def by_pillow(data):
    return torch.from_numpy(np.array(decode(data))).permute(2, 0, 1)


def outcome(read, data):
    try:
        return read(data)
    except ImageError as error:
        return error.reason


SAMPLINGS = [0, 1, 2, "4:1:1"]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(90, 70), (1, 1), (17, 33), (8, 200)])
def test_pixels_are_pillows_bit_for_bit(fast, mode, size):
    image, count = photo(*size).convert(mode), 0
    for sampling in SAMPLINGS if mode == "RGB" else [0]:
        for progressive in (False, True):
            for options in ({"quality": 30}, {"quality": 95, "optimize": True}, {"restart_marker_blocks": 2}):
                data = encoded(image, subsampling=sampling, progressive=progressive, **options)
                assert torch.equal(decode_pixels(data), by_pillow(data)), (sampling, progressive, options)
                count += 1
    data = encoded(image, keep_rgb=True)  # stored as RGB, not as YCbCr
    assert torch.equal(decode_pixels(data), by_pillow(data))
    assert len(fast) == count + 1
    assert decode_pixels(data).permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("turned", range(9))
@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_the_orientation_is_applied(fast, turned, where):
    exif = Image.Exif()
    exif[0x0112] = turned
    options = {"exif": exif} if where == "exif" else {"xmp": f'<x tiff:Orientation="{turned}"/>'.encode()}
    data = encoded(photo(), **options)
    found = decode_pixels(data)
    assert found.shape == ((3, 70, 90) if turned < 5 else (3, 90, 70))
    assert torch.equal(found, by_pillow(data))
    assert found.permute(1, 2, 0).is_contiguous()
    assert len(fast) == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own remark
def test_a_corrupt_exif_block_is_not_fatal(fast):
    data = encoded(photo(), exif=b"Exif\x00\x00" + b"MM\x00\x2a" + b"\xff" * 40)
    assert torch.equal(decode_pixels(data), by_pillow(data))
    assert len(fast) == 1


def test_what_is_no_plain_jpeg_is_left_to_pillow(fast):
    files = [
        encoded(photo().convert("CMYK")),
        encoded(photo(), "PNG"),
        encoded(photo(), "WEBP"),
        encoded(photo(), "GIF"),
        encoded(Image.fromarray(np.arange(6000, dtype=np.uint16).reshape(60, 100)), "PNG"),  # 16 bits
        encoded(photo().convert("RGBA"), "PNG"),
    ]
    for data in files:
        assert torch.equal(decode_pixels(data), by_pillow(data))
    assert fast == []


def test_pillow_decodes_everything_when_it_is_asked_to(fast):
    data = encoded(photo())
    assert torch.equal(decode_pixels(data, "pillow"), by_pillow(data))
    assert fast == []


@pytest.mark.parametrize("progressive", [False, True])
def test_any_damage_has_the_pixels_or_the_reason_that_pillow_gives(fast, progressive, capfd):
    whole, dice = encoded(photo(), progressive=progressive, quality=90), random.Random(0)
    met = set()
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(dice.choice((0, 1, 1, 4))):
            data[dice.randrange(3, len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            data = data[: dice.randrange(len(data))]
        expected, found = outcome(by_pillow, bytes(data)), outcome(decode_pixels, bytes(data))
        met.add(expected if isinstance(expected, str) else "pixels")
        assert found == expected if isinstance(expected, str) else torch.equal(found, expected)
    assert met >= {"pixels", "truncated", "broken"}
    assert 0 < len(fast) < 250
    assert capfd.readouterr() == ("", ""), "libjpeg would remark on it"


def test_a_bomb_is_refused_from_its_header(fast):
    data = bytearray(encoded(photo()))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = (60_000).to_bytes(2, "big") * 2
    assert outcome(decode_pixels, bytes(data)) == "bomb"
    assert fast == []
