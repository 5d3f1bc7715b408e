"""Small images like photos, smooth and full of contrast, and changed copies of them."""

import io
import random

from PIL import Image, ImageEnhance


def draw_scene(seed, size=96):
    """Return a smooth random image; those of different seeds are not alike."""
    pixels = random.Random(seed).randbytes(9 * 9 * 3)
    return Image.frombytes("RGB", (9, 9), pixels).resize((size, size), Image.Resampling.BICUBIC)


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def change(image, how):
    """Return the bytes of a copy: smaller, larger, a poor JPEG, darker, brighter."""
    if how in ("smaller", "larger"):
        side = 60 if how == "smaller" else 140
        return encode(image.resize((side, side), Image.Resampling.BICUBIC))
    if how == "jpeg":
        return encode(image, "JPEG", quality=40)
    return encode(ImageEnhance.Brightness(image).enhance(0.85 if how == "darker" else 1.1))


CHANGES = ("smaller", "larger", "jpeg", "darker", "brighter")
