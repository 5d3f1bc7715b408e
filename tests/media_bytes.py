"""Files of sounds, grey images and motions, made in memory."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RATE = 16_000


def tone(samples: int, rate: int = RATE, hertz: float = 440.0) -> NDArray[np.float64]:
    """A sine wave of amplitude 0.5."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)


def sound(values: NDArray[np.float64], rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """A sound file."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, values, rate, format=kind, subtype=subtype)
    return out.getvalue()


def png(values: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A grey PNG of 8 or 16 bits, or one of three channels."""
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def npy(values: NDArray[np.generic]) -> bytes:
    """A NPY file, of objects too."""
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()
