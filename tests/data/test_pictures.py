"""Images: every mode becomes the right RGB pixels, and every broken file a reason."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unicl_cli.data.pictures import ImageError, decode, difference_hash, examine


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width=40, height=30):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], -1).clip(0, 255).astype(np.uint8))


def reason_of(data):
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.reason


def test_transparent_pixels_become_white_in_rgba_la_and_palette():
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    grey = Image.new("LA", (4, 4), (0, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0])
    for data in (encoded(red), encoded(grey), encoded(palette, transparency=0)):
        assert decode(data).getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_red_is_mixed_with_white():
    assert decode(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))).getpixel((0, 0)) == (255, 127, 127)


def test_sixteen_bits_are_scaled_not_clipped():
    grey = Image.fromarray(np.full((3, 3), 30000, np.uint16))
    assert decode(encoded(grey)).getpixel((0, 0)) == (117, 117, 117)


def test_cmyk_palette_and_one_bit_become_rgb():
    cmyk = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = cmyk.getpixel((4, 4))
    assert (cmyk.mode, red > 230, green < 40, blue < 40) == ("RGB", True, True, True)
    assert decode(encoded(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)
    quantized = decode(encoded(photo().quantize(16), "GIF"))
    assert (quantized.mode, quantized.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_its_definition_says(orientation):
    pixels = np.asarray(photo())
    stored = {  # what a camera stores so that the viewer, turning it back, sees `pixels`
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(data)), pixels)
    assert examine(data, None)[1:3] == (40, 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own remark
def test_corrupt_exif_is_not_fatal():
    data = encoded(photo(), "JPEG", exif=b"Exif\x00\x00" + b"MM\x00\x2a" + b"\xff" * 40)
    assert decode(data).size == (40, 30)


def test_the_first_frame_of_an_animation_is_taken_and_noted():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("blue", "red")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(data).getpixel((2, 2)) == (0, 0, 255)
        assert examine(data, None).animated
    assert not examine(encoded(frames[0]), None).animated


def test_broken_files_have_their_reason():
    jpeg, png = encoded(photo(200, 150), "JPEG"), encoded(photo(200, 150))
    assert reason_of(b"") == "empty"
    assert reason_of(b"<!DOCTYPE html><html>") == "not_image"
    assert reason_of(b"\x00" * 100) == "not_image"
    assert reason_of(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>') == "unsupported_format"
    assert reason_of(b"\x00\x00\x00\x18ftypheic" + b"\x00" * 40) == "unsupported_format"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason_of(png[: len(png) // 2]) == "truncated"
    assert reason_of(encoded(photo(), "GIF")[:-200]) in ("truncated", "broken")


def test_a_picture_bomb_is_refused_from_its_header_without_the_memory_of_its_pixels():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
        + chunk(b"IEND", b"")
    )
    assert reason_of(bomb) == "bomb"
    script = (
        "import resource, sys; from unicl_cli.data.pictures import ImageError, decode\n"
        "data = sys.stdin.buffer.read(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(data)\nexcept ImageError: pass\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, 'kilobytes'"
    )
    subprocess.run([sys.executable, "-c", script], input=bomb, check=True)


def test_an_error_survives_a_process_boundary():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("truncated", "half")))
    assert (error.reason, str(error)) == ("truncated", "truncated: half")


def test_bytes_are_kept_unless_the_short_side_is_above_the_size():
    data = encoded(photo(400, 300), "JPEG", quality=70)
    assert examine(data, None).data == data
    assert examine(data, 300).data == data
    small = examine(data, 150)
    assert (small.width, small.height) == (200, 150)
    assert decode(small.data).size == (200, 150)
    assert examine(encoded(photo(300, 400)), 30)[1:3] == (30, 40)


def test_near_pictures_have_near_hashes_and_other_pictures_far_ones():
    picture = photo(256, 192)
    again = decode(encoded(picture.resize((128, 96)), "JPEG", quality=60))
    other = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))

    def distance(a, b):
        return bin((difference_hash(a) ^ difference_hash(b)) & (2**64 - 1)).count("1")

    assert distance(picture, again) <= 4
    assert distance(picture, other) > 12
    assert -(2**63) <= difference_hash(other) < 2**63


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 1500), flip=st.integers(0, 1500), value=st.integers(0, 255))
def test_any_damage_gives_a_picture_or_a_reason(cut, flip, value):
    data = bytearray(encoded(photo(100, 80), "JPEG"))
    data[flip % len(data)] = value
    try:
        result = decode(bytes(data[: len(data) - cut % len(data)])).mode
    except ImageError as error:
        result = error.reason
    assert result in {"RGB", "empty", "not_image", "unsupported_format", "bomb", "truncated", "broken"}


def outcome_of(use, data):
    try:
        use(data)
    except ImageError as error:
        return error.reason, error.detail
    return None


@settings(max_examples=100, deadline=None)
@given(
    cut=st.integers(1, 2500), flip=st.integers(20, 2500), value=st.integers(0, 255), progressive=st.booleans(),
    orientation=st.sampled_from((1, 6)),
)  # fmt: skip
def test_a_jpeg_that_stays_as_it_is_has_the_outcome_of_its_whole_decoding(cut, flip, value, progressive, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = bytearray(encoded(photo(100, 80), "JPEG", progressive=progressive, exif=exif, subsampling=0))
    data[flip % len(data)] = value
    data = bytes(data[: len(data) + 600 - cut]) if cut > 600 else bytes(data)
    assert outcome_of(lambda given: examine(given, None), data) == outcome_of(decode, data)


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "MPO"])
def test_damage_in_any_format_has_the_outcome_of_its_whole_decoding(format):
    """A PNG was kept with damaged pixels when its orientation was asked for before they were decoded."""
    data = encoded(photo(60, 40), format)
    for place in range(40, len(data), max(1, len(data) // 100)):
        for damaged in (data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :], data[:place]):
            assert outcome_of(lambda given: examine(given, None), damaged) == outcome_of(decode, damaged)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
@pytest.mark.parametrize("turn", [1, 6])
def test_the_brightness_of_a_jpeg_gives_the_hash_of_its_pixels(options, turn):
    """Of the format's own channel, which is that of the converted pixels up to rounding."""
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo(256, 192), "JPEG", exif=exif, **options)
    found, expected = examine(data, None).phash, difference_hash(decode(data))
    assert bin((found ^ expected) & (2**64 - 1)).count("1") <= 1
    assert examine(data, None)[1:3] == ((256, 192) if turn == 1 else (192, 256))
