"""Images that cost far more than their pixels are refused before they are decoded, in every format; others are not."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unicl_cli.data import image_work
from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.pictures import ImageError, decode, examine

SIDE = 64
MORE = b"\0" * image_work.SMALL  # so long that the parts of any format are counted


def photo(side=SIDE):
    x = np.linspace(0, 9, side)
    grey = 127 + 60 * np.sin(x)[:, None] + 60 * np.cos(x)[None, :]
    return Image.fromarray(np.stack([grey, grey[::-1], grey.T], 2).astype(np.uint8))


def encoded(kind, image=None, **options):
    out = io.BytesIO()
    (image or photo()).save(out, kind, **options)
    return out.getvalue()


def reason_of(data):
    """Decode an image in each way there is; return the reason that all of them give, or its size."""
    found = set()
    for way in (decode, decode_pixels, lambda given: examine(given, 16)):
        try:
            way(data)
            found.add("fine")
        except ImageError as error:
            found.add(error.reason)
    (reason,) = found
    return reason


def with_scans(count, between=b"", after=b""):
    """A progressive JPEG whose last scan, of 14 bytes and a segment, is repeated."""
    data = encoded("JPEG", photo().convert("L"), progressive=True)
    at = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4")
    return data[:tables] + data[tables:at] + (between + data[at:-2]) * count + b"\xff\xd9" + after


def comment(content):
    return b"\xff\xfe" + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded("JPEG", progressive=True), "fine"),
        (with_scans(100), "fine"),
        (with_scans(400), "fine"),
        (with_scans(600), "too_costly"),
        (with_scans(600, comment(b"\xff\xd9")), "too_costly"),
        (with_scans(3, comment(b"\xff\xda" * 900)), "fine"),
        (with_scans(3, after=b"\xff\xda" * 5000), "fine"),
    ],
    ids=["usual", "100", "400", "600", "hidden", "comments", "behind"],
)  # fmt: skip
def test_the_scans_of_a_jpeg_are_counted_up_to_its_end(data, reason):
    assert reason_of(data) == reason


def test_fewer_scans_are_allowed_the_more_pixels_they_visit(monkeypatch):
    assert reason_of(with_scans(100)) == "fine"
    monkeypatch.setattr(image_work, "SCANNED_PIXELS", 50 * SIDE * SIDE)
    assert reason_of(with_scans(100)) == "too_costly"
    assert reason_of(with_scans(20)) == "fine"


def test_the_segments_of_a_jpeg_are_counted():
    data = encoded("JPEG")
    assert reason_of(data[:2] + comment(b"note") * 200 + data[2:] + MORE) == "fine"
    assert reason_of(data[:2] + comment(b"") * 70_000 + data[2:]) == "too_costly"
    assert reason_of(data[:2] + b"\xff" * 300_000 + data[2:]) == "too_costly"
    assert reason_of(data[:2] + b"\xff\x00" * 150_000 + data[2:]) == "too_costly"


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pieces):
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * SIDE) for _ in range(SIDE)), 0)
    size = -(-len(rows) // pieces)
    body = b"".join(chunk(b"IDAT", rows[at : at + size]) for at in range(0, len(rows), size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)), body


def test_the_chunks_of_a_png_are_counted():
    head, body = png(100)
    end = chunk(b"IEND", b"")
    assert reason_of(head + body + end + MORE) == "fine"
    assert reason_of(head + chunk(b"teSt", b"x" * 300_000) + body + end) == "fine"
    assert reason_of(head + chunk(b"teSt", b"") * 100_000 + body + end) == "too_costly"
    assert reason_of(head + chunk(b"IDAT", b"") * 100_000 + body + end) == "too_costly"


def tiff(offsets, compression=1):
    """A grey TIFF whose strips all lie at one place, each half as high as the image."""
    tags = [
        (256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, offsets, 200), (277, 3, 1, 1), (278, 4, 1, SIDE // 2), (279, 4, offsets, 200 + 4 * offsets),
    ]  # fmt: skip
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    data = (b"II*\0" + struct.pack("<I", 8) + ifd).ljust(200, b"\0")
    pixels = 200 + 8 * offsets
    return data + struct.pack("<I", pixels) * offsets + struct.pack("<I", SIDE * SIDE) * offsets + bytes(SIDE * SIDE)


def test_the_strips_of_a_tiff_are_counted_and_cover_its_pixels_few_times():
    assert reason_of(encoded("TIFF", photo(300), tiffinfo={278: 1})) == "fine"
    assert reason_of(encoded("TIFF", photo(300), tiffinfo={278: 1}, compression="tiff_lzw")) == "fine"
    assert reason_of(tiff(2)) == "fine"
    assert reason_of(tiff(2000)) == "too_costly"
    assert reason_of(tiff(300_000)) == "too_costly"


def icon(width, height, count=1, png=True):
    if png:
        body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    else:
        body = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 32, 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(body), 6 + 16 * count)
    return struct.pack("<HHH", 0, 1, count) + entry * count + body


def test_the_images_of_an_icon_are_small_and_few():
    assert reason_of(encoded("ICO")) == "fine"
    assert reason_of(icon(20_000, 20_000)) == "too_costly"
    assert reason_of(icon(20_000, -20_000, png=False)) == "too_costly"
    assert reason_of(icon(16, 16, count=20_000)) == "too_costly"


def jpeg2000(*, layers=1, precincts=b"", side=SIDE, tile=None, style=0, name=b"\xff\x52", boxed=False):
    """An image of JPEG 2000 with another header."""
    data = bytearray(encoded("JPEG2000", no_jp2=True, num_resolutions=max(1, len(precincts))))
    data[8:16] = struct.pack(">II", side, side)
    data[24:32] = struct.pack(">II", tile or side, tile or side)
    at = data.index(name)
    data[at + 6 : at + 8] = struct.pack(">H", layers)
    if precincts:
        data[at + 4] |= 1
        data[at + 2 : at + 4] = struct.pack(">H", 12 + len(precincts))
        data[at + 14 : at + 14] = precincts
    box = struct.pack(">I4s", 12, b"jP  ") + b"\r\n\x87\n" + struct.pack(">I4s", 12, b"uuid") + b"\xff\x4f\xff\x51"
    return box + struct.pack(">I4s", 0, b"jp2c") + data if boxed else bytes(data)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"precincts": b"\0", "side": 2000}, {"precincts": b"\0", "side": 7900}, {"layers": 65_535},
        {"tile": 1, "side": 255}, {"tile": 16, "side": 4000, "layers": 200},
    ],
)  # fmt: skip
def test_the_code_blocks_of_a_jpeg_2000_are_counted(options, boxed):
    """One of 165 bytes took 50 s and 7 GB."""
    if boxed and options.get("layers", 1) != 1:
        return
    assert reason_of(jpeg2000(**options, boxed=boxed)) == "too_costly"


@pytest.mark.parametrize(
    "options",
    [
        {}, {"no_jp2": True}, {"tile_size": (16, 16)}, {"quality_layers": [80, 40, 20, 10, 5]}, {"num_resolutions": 6},
        {"precinct_size": (32, 32), "codeblock_size": (16, 16)}, {"irreversible": True},
    ],
    ids=str,
)  # fmt: skip
def test_an_ordinary_jpeg_2000_is_read(options):
    assert reason_of(encoded("JPEG2000", photo(300), **options)) == "fine"


def test_the_values_that_pillow_decodes_one_by_one_are_few(monkeypatch):
    assert reason_of(b"P5 8 8 100\n" + bytes(64)) == "fine"
    assert reason_of(b"P2 8 8 100\n# made by hand\n" + b"7 " * 64) == "fine"
    assert reason_of(b"P2 8 8 100\n" + b"#\n" * 1000 + b"7 " * 64) == "too_costly"
    assert reason_of(b"P2 3000 3000 100\n" + b"7 " * 64) == "too_costly"
    assert reason_of(b"P5 3000 3000 100\n" + bytes(64)) == "too_costly"
    assert reason_of(b"P5 3000 3000 255\n" + bytes(9_000_000)) == "fine"


def bitmap(body, side=SIDE):
    size = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(body), 0, 0, 54 + 1024) + size + bytes(1024) + body


def test_the_run_lengths_of_a_bitmap_belong_to_its_pixels():
    row = bytes((SIDE, 7)) + b"\0\0"
    assert reason_of(bitmap(row * SIDE + b"\0\1")) == "fine"
    assert reason_of(bitmap((b"\1\7" * SIDE + b"\0\0") * SIDE + b"\0\1")) == "fine"
    assert reason_of(bitmap(b"\0\0" * 200_000)) == "too_costly"


KINDS = {
    kind: encoded(kind, photo(24), **options)
    for kind, options in {
        "JPEG": {"progressive": True}, "PNG": {}, "GIF": {}, "WEBP": {}, "AVIF": {}, "BMP": {}, "TIFF": {}, "PPM": {},
        "JPEG2000": {}, "ICO": {}, "TGA": {}, "MPO": {},
    }.items()
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32), cut=st.booleans())
def test_a_changed_image_is_decoded_or_has_a_reason(kind, seed, cut):
    draw = random.Random(seed)
    data = bytearray(KINDS[kind])
    for _ in range(draw.choice((1, 2, 8))):
        at = draw.randrange(min(len(data), draw.choice((40, 200, len(data)))))
        data[at : at + draw.choice((1, 1, 4))] = draw.choice((b"\xff", b"\0", b"\x80", draw.randbytes(4)))
    whole = bytes(data[: draw.randrange(len(data))] if cut else data)
    for way in (decode, decode_pixels):
        try:
            way(whole)
        except ImageError:
            continue
