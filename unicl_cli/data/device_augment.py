"""Augmentation of whole batches on a device, after the crop: each sample by its own random numbers."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.core.host_copy import send
from unicl_cli.core.sampler import seed_of
from unicl_cli.data.transforms import ERASED_AREA, ERASED_RATIO, JITTERED, SIGMA, Augmentation, blur_kernel

AT_ONCE = 64
"""Images augmented together: 40 MB for each copy in float32 at 224 pixels."""
SALT = 21
GOLDEN, FIRST, SECOND = (word - (1 << 64) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""The constants of splitmix64 as int64."""
LANES = {
    name: number
    for number, name in enumerate(
        (
            *("flip", "down", "right", "jitter", "brightness", "contrast", "saturation", "hue"),
            *("order 0", "order 1", "order 2", "order 3", "grey", "blur", "sigma"),
            *("noise", "erase", "area", "ratio", "top", "left", "fill"),
        )
    )
}
"""The number of each use of randomness, so that no use depends on which others are drawn."""
GREY = (0.2989, 0.587, 0.114)


def _shifted_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64's own shift would repeat the sign


def scramble_tensor(x: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 to int64, which wraps around."""
    x = (x ^ _shifted_right(x, 30)) * FIRST
    x = (x ^ _shifted_right(x, 27)) * SECOND
    return x ^ _shifted_right(x, 31)


class SampleRandom:
    """Random numbers of samples: a function of seed, draw (int64 ``draws`` (b,)), view and lane alone."""

    def __init__(self, seed: int, view: int, draws: Tensor) -> None:
        self.keys = scramble_tensor(scramble_tensor(draws) + torch.tensor(seed_of(seed, view, SALT)) * GOLDEN)

    def key(self, lane: str) -> Tensor:
        """Return int64 (b,), all 64 bits random."""
        return scramble_tensor(self.keys + torch.tensor(LANES[lane] + 1) * GOLDEN)

    def uniform(self, lane: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return float32 (b,) in [low, high)."""
        return low + (high - low) * to_unit(self.key(lane))

    def below(self, lane: str, chance: float) -> Tensor:
        """Return int64 (n,): the samples whose number is below ``chance``."""
        return (self.uniform(lane) < chance).nonzero().flatten()


def to_unit(bits: Tensor) -> Tensor:
    """Return float32 in [0, 1) from the upper 24 bits of int64."""
    return _shifted_right(bits, 40).float() * 2.0**-24


def pixel_bits(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Return int64 (n, *shape) from keys (n,): 64 random bits for each pixel."""
    places = torch.arange(1, 1 + math.prod(shape), device=keys.device) * GOLDEN
    return scramble_tensor(keys[:, None] + places).view(-1, *shape)


class DeviceAugment:
    """uint8 (b, 3, S, S), or (b, V, 3, S, S), on any device -> the same shape, each sample augmented by itself.

    It does the steps of `transforms.View` after crop and RandAugment, with the same distributions but other numbers.
    """

    def __init__(self, views: Sequence[Augmentation], seed: int) -> None:
        self.views, self.seed = tuple(views), seed

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment ``images``; ``draws`` int64 (b,) is on the CPU, which decides each change: the device never waits."""
        parts: list[Tensor] = []
        for some, their in zip(images.split(AT_ONCE), draws.split(AT_ONCE), strict=True):
            views = some.unsqueeze(1) if some.ndim == 4 else some
            done = [self.view(x, their, v) for v, x in enumerate(views.unbind(1))]
            parts.append(torch.stack(done, 1).view(some.shape))
        return torch.cat(parts)

    def view(self, x: Tensor, draws: Tensor, number: int) -> Tensor:
        """Return the view ``number`` of some samples, uint8 (n, 3, S, S)."""
        ops, rng = self.views[number], SampleRandom(self.seed, number, draws)
        if ops.flip:
            x = change_some(x, rng.below("flip", ops.flip), mirror)
        if ops.shift:
            x = shift(x, *(rng.uniform(way, -ops.shift, ops.shift + 1).floor().long() for way in ("down", "right")))
        if ops.jitter:
            x = jitter(x, rng, ops.jitter)
        if ops.grey:
            x = change_some(x, rng.below("grey", ops.grey), to_grey)
        if ops.blur:
            x = change_some(x, rng.below("blur", ops.blur), blur, rng.uniform("sigma", *SIGMA))
        if ops.noise:
            x = add_noise(x, send(rng.key("noise"), x.device), ops.noise)
        if ops.erase:
            x = erase(x, rng, ops.erase)
        return x


def change_some(x: Tensor, which: Tensor, change: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """Apply ``change`` to the samples ``which`` (n,), with their entries of ``numbers`` (b,) as (n, 1, 1, 1)."""
    if not len(which):
        return x
    own = [send(number[which], x.device)[:, None, None, None] for number in numbers]
    which = send(which, x.device)
    return x.index_copy(0, which, change(x[which], *own))


def mirror(x: Tensor) -> Tensor:
    return x.flip(3)


def to_grey(x: Tensor) -> Tensor:
    return luma(x).to(torch.uint8).expand_as(x)


def shift(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move each sample ``down`` and ``right`` by pixels (b,); the edges are repeated."""
    side = x.shape[-1]
    places = torch.arange(side)
    rows, columns = (send((places - by[:, None]).clamp(0, side - 1), x.device) for by in (down, right))  # (b, S)
    return x[torch.arange(len(x), device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


def jitter(x: Tensor, rng: SampleRandom, strength: float) -> Tensor:
    """Change brightness, contrast, saturation and hue in each sample's own order, as torchvision's ColorJitter."""
    hit = rng.uniform("jitter") < JITTERED
    turn = torch.stack([rng.uniform(f"order {n}") for n in range(4)]).argsort(0)  # (4, b): the change done n-th
    low, hue = max(0.0, 1 - strength), min(strength / 4, 0.5)
    spans = {"brightness": (low, 1 + strength), "contrast": (low, 1 + strength), "saturation": (low, 1 + strength)}
    spans["hue"] = (-hue, hue)
    for now in turn:
        for number, (name, span) in enumerate(spans.items()):
            which = (hit & (now == number)).nonzero().flatten()
            x = change_some(x, which, COLOURS[name], rng.uniform(name, *span))
    return x


def luma(x: Tensor) -> Tensor:
    """Return the luma of (n, 3, S, S) as float32 (n, 1, S, S)."""
    red, green, blue = x.float().split(1, 1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + other * (1 - factor)).clamp(0, 255).to(torch.uint8)


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 255).to(torch.uint8)


def change_contrast(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, luma(x).floor().mean((1, 2, 3), keepdim=True), factor)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, luma(x).floor(), factor)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of its circle; value and saturation are kept."""
    x = x.float() / 255
    low, high = x.aminmax(dim=1, keepdim=True)
    span = high - low
    red, green, blue = x.split(1, 1)
    safe = span.masked_fill(span == 0, 1)
    sixths = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    places = torch.arange(5, 0, -2, dtype=x.dtype, device=x.device)[None, :, None, None]  # 5, 3, 1
    k = (places + sixths + 6 * turn).remainder(6)
    return ((high - span * torch.minimum(k, 4 - k).clamp(0, 1)) * 255.999).to(torch.uint8)


COLOURS = {"brightness": brighten, "contrast": change_contrast, "saturation": saturate, "hue": turn_hue}


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of ``sigma`` (n, 1, 1, 1), edges mirrored: as sums of shifts, which are equal in any batch."""
    size = x.shape[-1]
    kernel = blur_kernel(size)
    reach = (kernel - 1) / (2 * math.sqrt(2))
    weights = (-(torch.linspace(-reach, reach, kernel, device=x.device) / sigma).square()).softmax(-1)  # (n, 1, 1, k)
    half = kernel // 2
    wide = F.pad(x.float(), (half, half, half, half), mode="reflect")
    for dim in (2, 3):
        shifts = (wide.narrow(dim, n, size) * weights[..., n, None] for n in range(kernel))
        wide = reduce(torch.add, shifts)
    return wide.round().clamp(0, 255).to(torch.uint8)


def add_noise(x: Tensor, keys: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise (Box-Muller on the two halves of a pixel's bits); ``deviation`` is of pixels in [0, 1]."""
    bits = pixel_bits(keys, x.shape[1:])
    radius = (-2 * (1 - to_unit(bits)).log()).sqrt()
    noise = radius * (2 * math.pi * to_unit(bits << 24)).cos()
    return (x + noise * (255 * deviation)).round().clamp(0, 255).to(torch.uint8)


def erase(x: Tensor, rng: SampleRandom, chance: float) -> Tensor:
    """Fill a rectangle of some samples with noise."""
    size = x.shape[-1]
    area = size**2 * rng.uniform("area", *ERASED_AREA)
    ratio = rng.uniform("ratio", -ERASED_RATIO, ERASED_RATIO).exp()
    height, width = ((area * r).sqrt().round().clamp(1, size) for r in (ratio, 1 / ratio))
    top, left = ((rng.uniform(way) * (size - side + 1)).floor() for way, side in (("top", height), ("left", width)))

    def fill(some: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, keys: Tensor) -> Tensor:
        rows = torch.arange(size, device=x.device)[:, None]
        columns = torch.arange(size, device=x.device)
        inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)  # (n, 1, S, S)
        noise = _shifted_right(pixel_bits(keys.flatten(), some.shape[1:]), 56).to(torch.uint8)
        return torch.where(inside, noise, some)

    return change_some(x, rng.below("erase", chance), fill, top, left, height, width, rng.key("fill"))
