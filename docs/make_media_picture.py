"""The picture of `shapes` with media: `python docs/make_media_picture.py` draws `docs/shape-media.png`."""

import io
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from unicl_cli.data.media import KINDS
from unicl_cli.data.sources.shapes import shapes

SIDE, GAP, COUNT = 80, 4, 6
WINDOW, HOP = 512, 128
FARTHEST = 4500  # mm


def grey(values: np.ndarray) -> Image.Image:
    """Draw values in [0, 1], (H, W)."""
    return Image.fromarray((255 * values.clip(0, 1)).astype(np.uint8))


def spectrogram(data: bytes) -> np.ndarray:
    """Return the loudness below 4 kHz, (frequency from above, time) in [0, 1]."""
    with wave.open(io.BytesIO(data)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
    starts = range(0, len(sound) - WINDOW, HOP)
    spectra = [np.abs(np.fft.rfft(sound[at : at + WINDOW] * np.hanning(WINDOW)))[: WINDOW // 4] for at in starts]
    loud = np.log1p(np.array(spectra).T[::-1])
    return loud / loud.max()


def motion(data: bytes) -> np.ndarray:
    """Return the six axes as bands, grey where they rest, (axis, time) in [0, 1]."""
    values = np.load(io.BytesIO(data)).T
    swings = values - values.mean(1, keepdims=True)
    return 0.5 + swings / np.abs(swings).max() / 2


def main() -> None:
    source = shapes(kind="images", size=64, count=COUNT, test=1, media=",".join(KINDS))
    sheet = Image.new("RGB", (COUNT * (SIDE + GAP) - GAP, 5 * (SIDE + GAP) - GAP), "white")
    for column, row in enumerate(source.rows("train")):
        found = source.read(row)
        depth = np.asarray(Image.open(io.BytesIO(found["depth"]))) / FARTHEST
        tiles = [
            Image.open(io.BytesIO(found["image"])),
            grey(1 - depth),
            Image.open(io.BytesIO(found["thermal"])),
            grey(spectrogram(found["audio"])),
            grey(motion(found["imu"])),
        ]
        for line, tile in enumerate(tiles):
            resized = tile.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(resized, (column * (SIDE + GAP), line * (SIDE + GAP)))
    sheet.quantize(128).save(Path(__file__).with_name("shape-media.png"), optimize=True)


if __name__ == "__main__":
    main()
