"""Generated JPEGs the size of photographs, from a fixed seed: 500 x 375, quality 90, about 25 KB."""

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unicl_cli.contracts import Sample

WIDTH, HEIGHT, QUALITY = 500, 375, 90
CONTRAST, SLOPE = 22.0, 1.6
"""Standard deviation in levels, and the decay of amplitudes with frequency: chosen for the file size."""


def make_noise(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise (HEIGHT, WIDTH) of unit deviation whose amplitudes fall with frequency."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf
    waves = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    field = np.fft.irfft2(waves / frequency**SLOPE, s=(HEIGHT, WIDTH))
    return field / field.std()


def make_jpeg(seed: int) -> bytes:
    """Return one file with correlated channels, as in photographs."""
    rng = np.random.default_rng((7, seed))
    shared = make_noise(rng)
    channels = [0.95 * shared + 0.3 * make_noise(rng) for _ in range(3)]
    pixels = np.clip(128 + CONTRAST * np.stack(channels, 2), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


@cache
def make_jpegs(count: int) -> tuple[bytes, ...]:
    return tuple(make_jpeg(seed) for seed in range(count))


class FileTable:
    """Generated image files and their captions, in place of a corpus's table.

    Every loader worker imports the module of its table, so that this one must stay light.
    """

    def __init__(self, files: tuple[bytes, ...], texts: list[str]) -> None:
        self.files, self.texts = files, texts

    def __len__(self) -> int:
        return len(self.files)

    def prefetch(self, rows: Sequence[int], *, media: bool = False, image: bool = True) -> None:
        """The files are in memory."""

    def read(self, row: int, *, media: bool = False, image: bool = True) -> Sample:
        del media, image
        return Sample(self.files[row], (self.texts[row],), -1, "bench", str(row), (row,))
