"""Every kind of image: RGB with the expected pixels, or a reason; never a program run, never a remark on stderr."""

import gzip
import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from unicl_cli.data.pictures import ImageError, decode, examine

RED = (255, 0, 0)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def plain(mode, colour, kind="PNG", size=(8, 8), **options):
    return encoded(Image.new(mode, size, colour), kind, **options)


def noise(width=200, height=150):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def near(data, expected, tolerance=3):
    image = decode(data)
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image, int).reshape(-1, 3).mean(0), expected, atol=tolerance)


def reason_of(data, **options):
    with pytest.raises(ImageError) as caught:
        examine(data, None, **options)
    assert "0x" not in caught.value.detail  # no address in memory
    return caught.value.reason


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def samples(tiff):
    """With 255 samples a pixel, of which Pillow complains by its logger."""
    at = tiff.index(struct.pack("<HHI", 277, 3, 1))
    return tiff[: at + 8] + struct.pack("<H", 255) + tiff[at + 10 :]


def huge_png(side, *more):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(b"\x00" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("PPM", 0), ("TGA", 0), ("GIF", 0), ("JPEG2000", 0), ("JPEG", 3), ("WEBP", 4),
     ("AVIF", 6), ("MPO", 3)],
)  # fmt: skip
def test_formats_give_their_pixels(kind, tolerance):
    near(plain("RGB", (200, 40, 90), kind), (200, 40, 90), tolerance)


def test_an_icon_is_read():
    near(plain("RGB", RED, "ICO", size=(32, 32)), RED)


@pytest.mark.parametrize("order", ["I;16", "I;16B"])
def test_sixteen_bits_of_either_byte_order_are_scaled(order):
    values = np.full((4, 4), 50000, "<u2" if order == "I;16" else ">u2").tobytes()
    near(encoded(Image.frombytes(order, (4, 4), values), "TIFF"), [195] * 3, 0)  # the high byte: 50000 >> 8


def test_thirty_two_bit_and_floating_point_greys_are_scaled():
    near(encoded(Image.fromarray(np.full((4, 4), 30000, np.int32)), "TIFF"), [117] * 3, 0)
    near(encoded(Image.fromarray(np.full((4, 4), 200, np.int32)), "TIFF"), [200] * 3, 0)
    near(encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), [127] * 3, 1)


@pytest.mark.parametrize(
    "data",
    [
        plain("LA", (100, 0)),
        plain("RGBA", (255, 0, 0, 0)),
        plain("RGBA", (255, 0, 0, 0), "WEBP", lossless=True),
        plain("RGBA", (255, 0, 0, 0), "AVIF"),
        plain("RGB", RED, transparency=RED),
        plain("L", 7, transparency=7),
        plain("P", 0, transparency=b"\x00\xff"),
        plain("P", 0, "GIF", transparency=0),
        plain("1", 1),
    ],
    ids=["la", "rgba", "webp", "avif", "rgb key", "grey key", "palette", "gif", "one bit"],
)
def test_what_is_transparent_is_white(data):
    near(data, (255, 255, 255), 0)


def test_a_grey_with_alpha_is_mixed_with_white():
    near(plain("LA", (100, 128)), [177] * 3, 1)
    near(plain("1", 0), (0, 0, 0), 0)


def ycck_jpeg(colour):
    """Pillow writes CMYK only: its planes are made Y, Cb, Cr, K here and the Adobe marker is told so."""
    inverted = Image.new("RGB", (1, 1), tuple(255 - value for value in colour)).convert("YCbCr")
    y, cb, cr = inverted.getpixel((0, 0))
    stored = Image.new("CMYK", (16, 16), (255 - y, 255 - cb, 255 - cr, 0))  # inverted when saved
    data = bytearray(encoded(stored, "JPEG", quality=100, subsampling=0))
    at = data.index(b"Adobe") + 11
    assert data[at] in (0, 2)
    data[at] = 2
    return bytes(data)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 128, 255), (30, 200, 60)])
def test_ycck_jpegs_have_their_colours(colour):
    with Image.open(io.BytesIO(ycck_jpeg(colour))) as image:
        assert image.mode == "CMYK"
    near(ycck_jpeg(colour), colour, 4)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile_is_converted_plainly(kind):
    near(plain("CMYK", (0, 255, 255, 0), kind), RED)
    near(plain("CMYK", (0, 0, 0, 255), kind), (0, 0, 0))
    near(plain("CMYK", (0, 0, 0, 0), kind), (255, 255, 255))


def cmyk_profile(lab):
    """The smallest printer profile: black ink gives black, all else one colour in Lab (8 bits each)."""
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    table += bytes(range(256)) * 4 + (bytes(lab) + bytes((0, 128, 128))) * 8 + bytes(range(256)) * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0none\0\0\0\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79
    tags, body = b"", b""
    contents = {b"A2B0": table, b"wtpt": white, b"cprt": text, b"desc": described}
    for name, content in contents.items():
        tags += name + struct.pack(">II", 128 + 4 + 12 * len(contents) + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    rest = struct.pack(">I", len(contents)) + tags + body
    header = struct.pack(">I4sI4s4s4s", 128 + len(rest), b"none", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + rest


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_is_converted_by_it(kind):
    profile = cmyk_profile((128, 128, 128))  # whatever is printed, it is a middle grey
    assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space == "CMYK"
    near(plain("CMYK", (0, 255, 255, 0), kind, icc_profile=profile), [119] * 3)


@pytest.mark.parametrize(
    "profile",
    [
        b"garbage" * 20,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        cmyk_profile((1, 2, 3))[:300],
    ],
    ids=["no profile", "a profile for RGB", "a cut one"],
)
def test_a_corrupt_profile_is_never_fatal(profile):
    near(plain("CMYK", (0, 255, 255, 0), "JPEG", icc_profile=profile), RED)
    near(plain("RGB", RED, "PNG", icc_profile=profile), RED, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # pytest takes our own filter off
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*" + b"\xff" * 40, b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_corrupt_exif_is_never_fatal(exif, kind):
    near(plain("RGB", RED, kind, exif=exif), RED, 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_gives_its_first_frame_even_if_a_later_one_is_cut(kind):
    frames = [Image.new("RGB", (40, 40), "blue"), noise(40, 40)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    near(data, (0, 0, 255), 4)
    assert examine(data, None).animated
    if kind in ("GIF", "PNG"):  # the others keep a table of their frames
        near(data[:-500], (0, 0, 255), 4)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "unsupported_format"),
        (plain("RGB", RED, "EPS"), "unsupported_format"),
        (plain("RGB", RED, "PDF"), "unsupported_format"),
        (b"8BPS\0\1" + b"\0" * 40, "unsupported_format"),
        (gzip.compress(b"<svg/>"), "unsupported_format"),
        (b"\xef\xbb\xbf<!-- drawn --><SVG xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "unsupported_format"),
        (b"\0\0\0\x18ftypmif1" + b"\0" * 40, "unsupported_format"),
        (b"", "empty"),
        (b"<html><body>404</body></html>", "not_image"),
        (b"GIF89a", "broken"),
        (huge_png(15_900), "bomb"),
        (huge_png(20_000), "bomb"),
        (huge_png(60_000), "bomb"),
    ],
    ids=[*("eps", "eps file", "pdf", "psd", "svgz", "svg", "heic", "heif", "empty", "html", "gif"),
         *("253 Mpx", "400 Mpx", "3600 Mpx")],
)  # fmt: skip
def test_what_is_refused_has_its_reason(data, reason):
    assert reason_of(data) == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "GIF", "PPM", "TGA"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_is_cut_is_never_a_picture(kind, share):
    data = encoded(noise(), kind)
    assert reason_of(data[: int(len(data) * share)]) in ("truncated", "broken")


def test_small_pictures_are_refused_only_on_request():
    data = plain("RGB", RED, size=(40, 12))
    assert examine(data, None).height == 12
    assert examine(data, None, min_side=12).height == 12
    assert reason_of(data, min_side=13) == "too_small"


def test_a_strip_that_stays_too_long_for_a_jpeg_is_refused():
    strip = encoded(Image.new("L", (78_000, 13)))
    assert examine(strip, None).width == 78_000
    with pytest.raises(ImageError, match="unsupported_format: 72000 x 12 pixels: too long for a JPEG"):
        examine(strip, 12)


def test_nothing_is_said_on_stderr_and_nothing_large_is_decoded():
    """Pillow's warnings are the process's: seen in a fresh one, with every warning on."""
    script = (
        "import sys, threading\n"
        "from unicl_cli.data.pictures import ImageError, decode\n"
        "import pickle\n"
        "def each():\n"
        "    for data in items:\n"
        "        try: decode(data)\n"
        "        except ImageError as error: reasons.append(error.reason)\n"
        "items, reasons = pickle.load(sys.stdin.buffer), []\n"
        "threads = [threading.Thread(target=each) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(sorted(reasons))"
    )
    odd = plain("RGB", RED, "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    items = pickle.dumps([huge_png(20_000), odd, encoded(noise(), "TIFF")[:60], samples(encoded(noise(), "TIFF"))])
    ended = subprocess.run([sys.executable, "-W", "always", "-c", script], input=items, capture_output=True, check=True)
    assert ended.stderr == b""
    assert ended.stdout.decode().count("bomb") == 4
