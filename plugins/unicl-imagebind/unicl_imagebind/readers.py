"""Readers of media: the bytes of a sound, a grey image or a motion file -> the tensor that a tower takes."""

import io
from functools import cache
from math import gcd
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.api import ImageError, UniclError, find_audio_fault, open_image, read_imu

RATE, WINDOW, HOP, FFT, LOWEST = 16_000, 400, 160, 512, 20.0
"""Samples a second, of a frame and between frames; points of a frame's transform; lowest frequency in Hz."""
PREEMPHASIS, FLOOR = 0.97, float(np.finfo(np.float32).eps)
RATES, MOST_SAMPLES = (1_000, 768_000), 200_000_000
GREY = {"L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}
"""Modes of an image with one channel, and their largest value."""


class SoundReader(NamedTuple):
    """A WAV, FLAC or OGG file -> log-mel frames, float32 (clips, mels, frames) (ImageBind, section 3.2)."""

    mels: int
    frames: int
    clips: int
    mean: float
    std: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.clips, self.mels, self.frames)

    def __call__(self, data: bytes) -> Tensor:
        wave = torch.from_numpy(decode_sound(data))
        length = (self.frames - 1) * HOP + WINDOW
        spare = len(wave) - length
        if spare <= 0:
            parts = [F.pad(wave, (0, -spare))] * self.clips
        else:
            starts = [spare // 2] if self.clips == 1 else np.linspace(0, spare, self.clips).astype(int).tolist()
            parts = [wave[start : start + length] for start in starts]
        return ((log_mel(torch.stack(parts), self.mels) - self.mean) / self.std).float()


class GreyReader(NamedTuple):
    """An image of one channel of 8 or 16 bits -> float32 (1, size, size) in [-1, 1]: its middle square."""

    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, self.size, self.size)

    def __call__(self, data: bytes) -> Tensor:
        try:
            image = open_image(data)
            if image.mode not in GREY:
                raise UniclError(
                    f"an image with {len(image.getbands())} channels ({image.mode}) instead of grey values"
                )
            values = np.asarray(image).astype(np.float32)
        except ImageError as error:
            raise UniclError(f"an image that cannot be read ({error})") from error
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's, where pixels are missing or damaged
            raise UniclError("an image that is cut off or damaged") from error
        most = GREY[image.mode]
        if values.min() < 0 or values.max() > most:
            raise UniclError(f"an image with values outside 0 … {most}")
        whole = Image.fromarray(values / most)
        square = ImageOps.fit(whole, (self.size, self.size), Image.Resampling.BILINEAR)
        return 2 * torch.from_numpy(np.array(square))[None] - 1


class MotionReader(NamedTuple):
    """A NPY file of (T, 6), or a CSV file of six columns -> float32 (6, samples): its middle, or zeros behind it."""

    samples: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (6, self.samples)

    def __call__(self, data: bytes) -> Tensor:
        try:
            values = read_imu(data)
        except ValueError as error:
            raise UniclError(str(error)) from error
        spare = len(values) - self.samples
        x = torch.from_numpy(values[max(0, spare // 2) :][: self.samples]).T
        return F.pad(x, (0, max(0, -spare))).contiguous()


def decode_sound(data: bytes) -> NDArray[np.float64]:
    """Decode a sound to the mean of its channels at RATE, float64 (samples,). UniclError if it is damaged."""
    fault = find_audio_fault(data)
    if fault is not None:
        raise UniclError(fault)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            frames, own = file.frames, file.samplerate
            if frames * file.channels > MOST_SAMPLES:
                raise UniclError(f"a sound of more than {MOST_SAMPLES:,} samples")
            found = file.read(dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UniclError(f"not a sound that can be read ({error.error_string.rstrip('.')})") from error
    if len(found) < frames:
        raise UniclError("a sound that is cut off")
    if not len(found):
        raise UniclError("a sound without samples")
    if not np.isfinite(found).all() or np.abs(found).max() > np.finfo(np.float32).max:
        raise UniclError("a sound with samples that are not finite")
    if not RATES[0] <= own <= RATES[1]:
        raise UniclError(f"a sound of {own} samples a second, outside {RATES[0]:,} … {RATES[1]:,}")
    mono = found.mean(1)
    common = gcd(RATE, own)
    return mono if own == RATE else resample_poly(mono, RATE // common, own // common)


def log_mel(waves: Tensor, mels: int) -> Tensor:
    """Compute log-mel energies as Kaldi does: (n, samples) -> (n, mels, frames)."""
    frames = waves.unfold(1, WINDOW, HOP)
    frames = frames - frames.mean(2, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
    window = torch.hann_window(WINDOW, periodic=False, dtype=waves.dtype)
    power = torch.fft.rfft((frames - PREEMPHASIS * before) * window, FFT).abs().square()
    bank = mel_filters(mels).to(waves.dtype)
    return (power @ bank).clamp(min=FLOOR).log().transpose(1, 2)


@cache
def mel_filters(mels: int) -> Tensor:
    """Return Kaldi's triangles on the mel scale, float64 (FFT / 2 + 1, mels)."""

    def to_mel(hertz: Tensor) -> Tensor:
        return 1127 * (1 + hertz / 700).log()

    ends = to_mel(torch.tensor([LOWEST, RATE / 2], dtype=torch.float64))
    edges = torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64)
    bins = to_mel(torch.arange(FFT // 2 + 1, dtype=torch.float64) * RATE / FFT)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
