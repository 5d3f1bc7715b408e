"""Resizing of an image to the size of a model and cropping to its middle, without memory for the parts cut off."""

import math

from PIL import Image

REACH = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2, Image.Resampling.LANCZOS: 3}
"""Source pixels on each side that a filter reads per pixel of its result; more of them when it shrinks."""
LARGE_WHOLE = 1 << 23
"""An image that would have more pixels than this, 32 MB, when it is resized as a whole is cropped before."""


def short_side_size(image: tuple[int, int], short: int) -> tuple[int, int]:
    """Return (width, height) with the short side at ``short`` pixels and the long one in proportion, rounded down."""
    least = min(image)
    return int(short * image[0] / least), int(short * image[1] / least)


def square_words(size: int, filtered: str) -> tuple[str, ...]:
    """Return the two steps of `short_side_size` and `resize_middle` in words; ``filtered`` names the filter."""
    return (
        f"resize the short side to {size} and the long side to {size} * long / short, rounded down, {filtered}",
        crop_words(size, size),
    )


def crop_words(height: int, width: int) -> str:
    """Return the crop of `resize_middle` in words."""
    return (
        f"crop the centre to height {height} and width {width}: from the left (width - {width}) / 2 and from the top "
        f"(height - {height}) / 2, rounded to the nearest whole number, halves to the even one"
    )


def resize_middle(
    image: Image.Image, scaled: tuple[int, int], size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Return ``image`` resized to ``scaled`` and cropped to its middle ``size``, all (width, height).

    ``scaled`` is at least ``size`` on each side. Of a thin image, only the source pixels of the middle are resized: the
    whole of one of 60,000 x 1 pixels would take gigabytes. Its values differ from those of the long way by rounding.
    """
    width, height = size
    left, top = (round((whole - part) / 2) for whole, part in zip(scaled, size, strict=True))
    if scaled[0] * scaled[1] <= LARGE_WHOLE:
        return image.resize(scaled, resample).crop((left, top, left + width, top + height))
    across = source_span(left, width, image.width, scaled[0], REACH[resample])
    down = source_span(top, height, image.height, scaled[1], REACH[resample])
    part = image.crop((across[0], down[0], across[1], down[1]))
    return part.resize(size, resample, box=(across[2], down[2], across[3], down[3]))


def source_span(first: int, size: int, pixels: int, scaled: int, reach: int) -> tuple[int, int, float, float]:
    """Return the source pixels [low, high) that pixels ``first`` … ``first + size`` of ``scaled`` need, and their ends.

    The ends are exact and counted from ``low``: Pillow keeps them in 32 bits, too few for the middle of a long image.
    """
    start, end = first * pixels / scaled, (first + size) * pixels / scaled
    margin = reach * max(1.0, pixels / scaled) + 1
    low, high = max(0, math.floor(start - margin)), min(pixels, math.ceil(end + margin))
    return low, high, start - low, end - low
