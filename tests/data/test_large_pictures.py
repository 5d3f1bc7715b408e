import io

import numpy as np
import pytest
from PIL import Image

from unicl_cli.data import decoding, pictures
from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.pictures import ImageError, decode, examine
from unicl_cli.data.transforms import EvalTransform, TrainTransform, build_augment

SIDES = (301, 200)


def photo(mode="RGB", sides=SIDES):
    x, y = np.meshgrid(np.linspace(0, 3, sides[0]), np.linspace(0, 2, sides[1]))
    values = (127 + 120 * np.stack([np.sin(x + y), np.cos(x), np.sin(y)], 2)).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image, kind, orientation=1, **options):
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(out, kind, **({} if kind in ("BMP", "PPM", "TGA") else {"exif": exif}), **options)
    return out.getvalue()


@pytest.fixture
def small_limits(monkeypatch):
    """Limits that images of a test reach: halved above 40,000 pixels, refused above 150,000."""
    for module in (pictures, decoding):
        monkeypatch.setattr(module, "MAX_PIXELS", 40_000)
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 150_000)
    monkeypatch.setattr(pictures, "TILE", 64)


def half_of(data):
    whole = decode(data)
    return np.asarray(whole.resize((-(-whole.width // 2), -(-whole.height // 2)), Image.Resampling.BOX)).astype(int)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "MPO"])
def test_a_large_photo_is_halved_while_it_is_decoded(kind, orientation, request):
    data = encoded(photo(), kind, orientation)
    expected, stored = half_of(data), examine(data, None)
    request.getfixturevalue("small_limits")
    for found in (np.asarray(decode(data)), decode_pixels(data).permute(1, 2, 0).numpy()):
        assert found.shape == expected.shape
        assert abs(found.astype(int) - expected).max() <= 6  # the border of an odd side is one pixel further
    again = examine(data, None)
    assert (again.data, again.width, again.height) == (data, stored.width, stored.height)
    assert min(Image.open(io.BytesIO(examine(data, 50).data)).size) == 50


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_pixels_is_halved(mode, request):
    source = photo("RGB", (300, 200))
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(source.convert("L"))
        image = Image.fromarray((grey.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])) * 200)
    else:
        image = source.convert(mode)
    if "A" in mode:
        image.putalpha(source.getchannel(2))
    data = encoded(image, "TIFF")
    expected = half_of(data)
    request.getfixturevalue("small_limits")
    assert abs(np.asarray(decode(data)).astype(int) - expected).max() <= 1


def test_what_is_larger_still_is_refused(small_limits):
    for data in (encoded(photo(sides=(500, 320)), "PNG"), encoded(photo(), "WEBP"), encoded(photo(), "GIF")):
        with pytest.raises(ImageError, match="bomb"):
            decode(data)


def test_a_large_photo_trains_and_is_evaluated(small_limits):
    data = encoded(photo(), "PNG", 6)
    assert EvalTransform((32, 32))(data).shape == (3, 32, 32)
    crop = TrainTransform(32, [build_augment("basic", {})], 0, decoder="auto", resize="tensor")
    assert crop(data, 3).shape == (3, 32, 32)


def test_a_lack_of_memory_belongs_to_the_image(monkeypatch):
    """Wherever memory ends: when the pixels are read, when they become RGB, or when they are resized."""
    data = encoded(photo().convert("RGBA"), "PNG")
    crop = TrainTransform(32, [build_augment("basic", {})], 0, decoder="auto", resize="pillow")

    def lack(*_, **__):
        raise MemoryError

    for name in ("load", "convert", "resize"):
        with monkeypatch.context() as patch:
            patch.setattr("PIL.PngImagePlugin.PngImageFile.load" if name == "load" else f"PIL.Image.Image.{name}", lack)
            for use in (EvalTransform((32, 32)), lambda data: crop(data, 0), lambda data: examine(data, 16)):
                with pytest.raises(ImageError) as caught:
                    use(data)
                assert caught.value.reason == "out_of_memory", name
