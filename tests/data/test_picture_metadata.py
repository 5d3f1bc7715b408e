import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.pictures import ImageError, decode, examine

LONG = 3_000_000
NOTES = {
    "long compressed text": (b"zTXt", b"a\0\0" + zlib.compress(b"x" * LONG)),
    "long compressed international text": (b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * LONG)),
    "long text": (b"tEXt", b"a\0" + b"x" * 70_000_000),
    "long profile": (b"iCCP", b"p\0\0" + zlib.compress(b"y" * LONG)),
    "damaged profile": (b"iCCP", b"p\0\5garbage"),
    "damaged exif": (b"eXIf", b"garbage"),
    "short gamma": (b"gAMA", b""),
    "short density": (b"pHYs", b"\0"),
    "short chromaticity": (b"cHRM", b"\0"),
}


def chunk(kind, body, checksum=None):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum or zlib.crc32(kind + body))


def saved(kind, **options):
    out = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("place", ["before the pixels", "behind the pixels", "with a wrong checksum"])
def test_no_note_of_a_png_decides_whether_it_loads(name, place):
    kind, body = NOTES[name]
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = saved("PNG", exif=None if kind == b"eXIf" else turned)
    at = 33 if place != "behind the pixels" else len(plain) - 12
    note = chunk(kind, body[:100], 1) if place == "with a wrong checksum" else chunk(kind, body)
    data = plain[:at] + note + plain[at:]
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(plain)))
    assert examine(data, None)[:3] == (data, *decode(plain).size)


def test_an_orientation_in_xmp_survives_a_long_profile():
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>'
    plain = saved("PNG")
    data = plain[:33] + chunk(b"iTXt", xmp) + chunk(*NOTES["long profile"]) + plain[33:]
    assert decode(data).size == (30, 40)


def test_damage_to_what_pixels_need_is_still_an_error():
    palette = saved("PNG")
    cut = palette[: len(palette) // 2]
    flipped = bytearray(palette)
    flipped[palette.index(b"IDAT") + 20] ^= 255
    for data in (cut, bytes(flipped), palette[:33] + chunk(b"tRNS", b"\0" * 6, 1) + palette[33:]):
        with pytest.raises(ImageError, match=r"truncated|broken"):
            decode(data)


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_no_note_of_a_jpeg_decides_whether_it_loads(marker):
    plain = saved("JPEG")
    for body in (b"", b"JFIF", b"JFIF\0", b"Exif\0\0garbage", b"ICC_PROFILE\0", b"Adobe", b"MPF\0x", b"x" * 65_000):
        data = plain[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + plain[2:]
        assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(plain))), body[:12]
        assert np.array_equal(decode_pixels(data).permute(1, 2, 0).numpy(), np.asarray(decode(plain))), body[:12]


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "AVIF"])
def test_long_notes_of_other_formats_do_not_matter(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = decode(saved(kind, **options))
    noted = saved(kind, **options, icc_profile=b"q" * LONG, exif=b"Exif\0\0MM\0*" + b"\xff" * 1000)
    assert np.array_equal(np.asarray(decode(noted)), np.asarray(plain))


def test_the_reason_is_that_of_the_whole_file():
    for data in (b"\xff\xd8\xff\xe0" + b"cut" * 9, saved("JPEG")[:300], saved("PNG")[:40]):
        with pytest.raises(ImageError, match=r"truncated|broken"):
            decode(data)
