import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unicl_cli.core import framing
from unicl_cli.core.framing import resize_middle, short_side_size

FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)


def photo(width, height):
    """Smooth colours, as in a photo: without steps at which a filter overshoots."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = [np.sin(x + y), np.cos(2 * x), np.sin(y * x / 5)]
    return Image.fromarray((127 + 100 * np.stack(waves, 2)).astype(np.uint8))


def the_long_way(image, scaled, size, resample):
    left, top = (round((whole - part) / 2) for whole, part in zip(scaled, size, strict=True))
    return np.asarray(image.resize(scaled, resample).crop((left, top, left + size[0], top + size[1])))


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("sides", [(90, 40), (40, 90), (33, 33), (500, 20), (20, 501), (7, 200), (200, 7), (1, 90)])
@pytest.mark.parametrize("size", [8, 32])
def test_the_middle_of_a_thin_image_is_that_of_the_whole(monkeypatch, sides, size, resample):
    image = photo(*sides)
    scaled = short_side_size(image.size, size)
    expected = the_long_way(image, scaled, (size, size), resample)
    assert np.array_equal(np.asarray(resize_middle(image, scaled, (size, size), resample)), expected)
    monkeypatch.setattr(framing, "LARGE_WHOLE", 0)
    got = np.asarray(resize_middle(image, scaled, (size, size), resample)).astype(int)
    assert abs(got - expected).max() <= 1
    if sides[0] == sides[1]:
        assert np.array_equal(got, expected), "nothing is cropped"


def test_the_middle_is_found_in_the_longest_image_that_is_read():
    strip = Image.new("L", (50_000_000, 1), 10)
    strip.paste(200, (25_000_000, 0, 25_000_001, 1))
    row = np.asarray(resize_middle(strip, short_side_size(strip.size, 9), (9, 9), Image.Resampling.BILINEAR))[4]
    assert (np.diff(row.astype(int)) > 0).all(), "from the pixel before the bright one to its middle"
    assert row[0] < 40
    assert row[-1] > 170


def test_a_thin_image_takes_no_more_memory_than_any_other():
    script = (
        "import resource, sys; from PIL import Image; from unicl_cli.core.framing import *\n"
        "image = Image.new('RGB', (60_000, 1), 'red'); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "resize_middle(image, short_side_size(image.size, 224), (224, 224), Image.Resampling.BICUBIC)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )

    def bounded():
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, preexec_fn=bounded)
    assert int(ended.stdout) < 50_000, "kilobytes"
