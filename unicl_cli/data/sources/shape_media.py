"""Media of a drawn shape: depth and heat of its scene, a spoken name, a motion; integers, so the same everywhere."""

import io
import math
import random
import wave
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RATE = 16_000
"""Samples of sound per second."""
VOWELS = (
    *((730, 1090), (270, 2290), (300, 870), (660, 1720)),
    *((530, 1840), (440, 1020), (490, 1350), (390, 1990)),
)
"""The two formants, in Hz, of the syllable of each colour, after Peterson and Barney (1952)."""
SYLLABLES = ((300, 2900), (800, 1500), (350, 1200), (620, 2500), (900, 2100), (250, 600))
"""The same of each shape."""
BANDWIDTH = 90
HIGHEST = 3500
"""Hz from a formant's middle at which it falls to half, and of the highest overtone of a voice."""
HEAT = (225, 120, 70, 205, 95, 245, 85, 160)
"""The mean heat of each colour, 0 to 255: warm colours are hot."""
IMU_RATE = 100
"""Samples of motion per second."""
AXES = (
    *((8, 0, 0, 0, 0, 4), (8, 8, 0, 0, 0, 0), (0, 8, 2, 4, 0, 0)),
    *((0, 0, 8, 0, 8, 0), (2, 0, 0, 8, 8, 0), (0, 2, 0, 0, 4, 8)),
)
"""Motion of each of the six axes, for each shape; the colour is the speed of the motion."""
GRAVITY = 2511
"""9.81 m/s² in units of 1/256."""
_STEPS = 1024
_SINE: NDArray[np.int64] = np.array([round(4096 * math.sin(2 * math.pi * k / _STEPS)) for k in range(_STEPS)], np.int64)
"""One turn of a sine in 1024 steps, times 4096: no value lies near a half, so every machine rounds it alike."""


class Scene(NamedTuple):
    """A drawn shape: the numbers of its colour and shape, its mask ("L", of the image's size) and relative radius."""

    colour: int
    shape: int
    mask: Image.Image
    radius: float


def make_media(kinds: Sequence[str], scene: Scene, rng_of: Callable[[str], random.Random]) -> dict[str, bytes]:
    """Return the file of each kind for a scene; ``rng_of`` gives the generator of a kind."""
    return {kind: _MAKERS[kind](scene, rng_of(kind)) for kind in kinds}


def draw_depth(scene: Scene, rng: random.Random) -> bytes:
    """Return distances in mm, a grey PNG of 16 bits: a floor that comes nearer downwards, and the shape before it.

    The larger a shape appears, the nearer it is.
    """
    mask = _mask_of(scene)
    side = len(mask)
    floor = 4000 - 1500 * np.arange(side) // side + rng.randrange(-200, 201)
    near = round(400 / scene.radius) + rng.randrange(-50, 51)
    depth = (floor[:, None] * (255 - mask) + near * mask) // 255 + _noise(rng, side * side, 16).reshape(side, side)
    return _encode_png(depth.astype(np.uint16))


def draw_heat(scene: Scene, rng: random.Random) -> bytes:
    """Return a grey PNG of 8 bits: the shape has the heat of its colour, the ground that of the day."""
    mask = _mask_of(scene)
    side = len(mask)
    ground = rng.randrange(15, 50)
    hot = HEAT[scene.colour] + rng.randrange(-8, 9)
    heat = (ground * (255 - mask) + hot * mask) // 255 + _noise(rng, side * side, 6).reshape(side, side)
    return _encode_png(heat.clip(0, 255).astype(np.uint8))


def speak(scene: Scene, rng: random.Random) -> bytes:
    """Return a WAV of 16 bits: a syllable for the colour, one for the shape, in a voice and at a pace of its own.

    A voice has a pitch (90 to 250 Hz), which falls or rises a little, and a throat that shifts all formants.
    """
    pitch, throat = rng.randrange(90, 251), rng.randrange(90, 113)
    glide = rng.randrange(-12, 13)
    parts = [_pause(rng, 20, 80)]
    for formants in (VOWELS[scene.colour], SYLLABLES[scene.shape]):
        length = RATE * rng.randrange(140, 241) // 1000
        parts += [_voice(pitch, glide, [f * throat // 100 for f in formants], length), _pause(rng, 10, 60)]
    loudness = rng.randrange(6000, 20001)
    sound = np.concatenate(parts)
    sound = sound * loudness // max(1, int(np.abs(sound).max())) + _noise(rng, len(sound), rng.randrange(100, 1001))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(sound.astype("<i2").tobytes())
    return out.getvalue()


def move(scene: Scene, rng: random.Random) -> bytes:
    """Return an NPY of float32 (T, 6), 1.5 to 2.5 s: shaken along the axes of the shape, as fast as the colour says."""
    length = rng.randrange(150, 251)
    speed = (100 + 60 * scene.colour) * rng.randrange(96, 105) // 100  # hundredths of a turn per second
    strength = rng.randrange(40, 81)
    start = rng.randrange(_STEPS)
    phase = start + np.arange(length) * speed * _STEPS // (100 * IMU_RATE)
    values = np.empty((length, 6), np.int64)
    for axis, weight in enumerate(AXES[scene.shape]):
        swing = _SINE[(phase + axis * _STEPS // 4) % _STEPS] * weight * strength // 4096
        values[:, axis] = swing + _noise(rng, length, 40) + (GRAVITY if axis == 2 else 0)
    out = io.BytesIO()
    np.save(out, (values / 256).astype("<f4"))
    return out.getvalue()


def _voice(pitch: int, glide: int, formants: Sequence[int], length: int) -> NDArray[np.int64]:
    """Return the overtones of a pitch in Hz, loud near the formants; ``glide`` is its change in percent."""
    now = np.arange(length)
    hundredths = 100 + glide * now // length
    phase = np.cumsum(pitch * hundredths) * _STEPS // (100 * RATE) % _STEPS
    sound = np.zeros(length, np.int64)
    for number in range(1, HIGHEST // pitch + 1):
        sound += _SINE[number * phase % _STEPS] * _loudness(number * pitch, formants)
    ramp = np.minimum(np.minimum(now, length - 1 - now), 256)  # 16 ms, so that it does not click
    return sound * ramp // 256


def _loudness(frequency: int, formants: Sequence[int]) -> int:
    width = BANDWIDTH * BANDWIDTH
    return sum(256 * width // (width + (frequency - formant) ** 2) for formant in formants)


def _pause(rng: random.Random, low: int, high: int) -> NDArray[np.int64]:
    """Return silence of so many milliseconds."""
    return np.zeros(RATE * rng.randrange(low, high) // 1000, np.int64)


def _noise(rng: random.Random, count: int, most: int) -> NDArray[np.int64]:
    """Return ``count`` integers from -``most`` to ``most``, from 16 random bits each."""
    drawn = np.frombuffer(rng.randbytes(2 * count), "<u2").astype(np.int64)
    return drawn * (2 * most + 1) // 65536 - most


def _mask_of(scene: Scene) -> NDArray[np.int64]:
    return np.asarray(scene.mask, np.int64)


def _encode_png(values: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


_MAKERS: Mapping[str, Callable[[Scene, random.Random], bytes]] = {
    "audio": speak,
    "depth": draw_depth,
    "thermal": draw_heat,
    "imu": move,
}
