"""Transforms of images to uint8 tensors: the evaluation geometry, and augmentations as named presets."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from unicl_cli.core.framing import resize_middle, short_side_size, square_words
from unicl_cli.core.sampler import seed_of
from unicl_cli.data.decoding import decode_pixels, tensor_of
from unicl_cli.data.pictures import DECODING_WORDS, blame_image, decode
from unicl_cli.errors import UniclError

SIDES = (3 / 4, 4 / 3)
"""Smallest and largest width of a random crop, as a share of its height."""
JITTERED = 0.8
"""The share of images whose colours are changed."""
SIGMA = (0.1, 2.0)
"""Smallest and largest standard deviation of the blur, in pixels."""
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = 1.2
"""Maximum absolute logarithm of height over width: ratios 0.3 to 3.3."""
_LOG_SIDES: list[float] = torch.tensor(SIDES).log().tolist()


class Augmentation(NamedTuple):
    """The random changes of an image; None or 0 leaves one out."""

    crop: tuple[float, float] | None = None  # share of the area that a random crop keeps
    flip: float = 0.0  # probability of a mirror image
    shift: int = 0  # pixels, each way, edges repeated
    rand: str | None = None  # timm's RandAugment, for example rand-m9-mstd0.5-inc1
    jitter: float = 0.0  # strength of brightness, contrast, saturation; hue gets a quarter; applied to 4 of 5
    grey: float = 0.0  # probability
    blur: float = 0.0  # probability; kernel a tenth of the side
    noise: float = 0.0  # standard deviation, of pixels in [0, 1]
    erase: float = 0.0  # probability of a rectangle of 2 to 33 % of the area in noise (Random Erasing, AAAI 2020)


PRESETS = {
    "none": Augmentation(),
    "basic": Augmentation(crop=(0.5, 1.0), flip=0.5),
    "shift": Augmentation(shift=2),
    "strong": Augmentation(crop=(0.2, 1.0), flip=0.5, jitter=0.4, grey=0.2),  # SupCon's for CIFAR
    "simclr": Augmentation(crop=(0.08, 1.0), flip=0.5, jitter=0.8, grey=0.2, blur=0.5),
    "randaug": Augmentation(crop=(0.08, 1.0), flip=0.5, rand="rand-m9-mstd0.5-inc1"),
}


def build_augment(name: str, changes: Mapping[str, Any]) -> Augmentation:
    """Return a preset with some of its numbers changed; None keeps the preset's number."""
    return PRESETS[name]._replace(**{key: value for key, value in changes.items() if value is not None})


def split_augment(ops: Augmentation) -> tuple[Augmentation, Augmentation]:
    """Return the part that only a loader can do, on images of any size, and the part a device can do after it."""
    first = Augmentation(crop=ops.crop, rand=ops.rand)
    return first, ops._replace(crop=None, rand=None)


def resize_and_crop(image: Image.Image, size: int) -> Tensor:
    """Resize the short side to ``size`` (bicubic) and crop the centre: uint8 (3, size, size)."""
    scaled = short_side_size(image.size, size)
    return tensor_of(resize_middle(image, scaled, (size, size), Image.Resampling.BICUBIC))


def image_of(x: Tensor) -> Image.Image:
    """Return uint8 (3, H, W) as an RGB image."""
    return Image.fromarray(x.permute(1, 2, 0).numpy())


def eval_transform(data: bytes, size: int) -> Tensor:
    """Decode an image to uint8 (3, size, size) with the geometry of evaluation."""
    return resize_and_crop(decode(data), size)


class EvalTransform(NamedTuple):
    """An encoded image -> uint8 (3, height, width) for a model: by the model's own ``frame``, else `eval_transform`.

    ``size`` is (height, width); ``frame`` turns any image into one of that size.
    """

    size: tuple[int, int]
    frame: Callable[[Image.Image], Image.Image] | None = None

    def __call__(self, data: bytes) -> Tensor:
        with blame_image():
            if self.frame is None:
                return eval_transform(data, self.size[0])
            return tensor_of(self.frame(decode(data)))

    @property
    def words(self) -> tuple[str, ...]:
        """The steps from an encoded image to its pixels, in words that other programs can follow."""
        framed = (
            square_words(self.size[0], "bicubic, antialiased")
            if self.frame is None
            else getattr(self.frame, "words", (str(self.frame),))
        )
        return (*DECODING_WORDS, *framed, "keep 8 bits per value, 0 to 255, and put the channels first")


def blur_kernel(size: int) -> int:
    """Return the side of the blur's kernel in pixels, odd."""
    return min(max(3, size // 10 | 1), 2 * size - 1)  # an image of one pixel has no neighbours


def build_randaugment(config: str, size: int) -> Callable[[Image.Image], Image.Image]:
    """Build timm's RandAugment; it is imported here because the import takes a second."""
    from timm.data.auto_augment import rand_augment_transform

    try:
        return rand_augment_transform(config, {"translate_const": int(size * 0.45)})
    except (AssertionError, ValueError, KeyError) as error:
        raise UniclError(f"data.augment: rand: '{config}' is not a RandAugment", "try rand-m9-mstd0.5") from error


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, share: tuple[float, float]) -> Box:
    """Draw the crop of torchvision's RandomResizedCrop from the same random numbers, in a fifth of its time."""
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(*share).item()
        ratio = torch.empty(1).uniform_(*_LOG_SIDES).exp_().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,)))
            return Box(top, int(torch.randint(0, width - w + 1, (1,))), h, w)
    w = min(width, round(height * SIDES[1]))  # the image is too long for any try: take its middle
    h = min(height, round(width / SIDES[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize_by_torch(x: Tensor, size: int) -> Tensor:
    """Resize uint8 (3, H, W) to (3, size, size) by torch, bicubic with antialiasing: Pillow's levels, a few ± 1."""
    return interpolate(x[None], (size, size), mode="bicubic", antialias=True)[0]


def resize_by_pillow(x: Tensor, size: int) -> Tensor:
    """Resize as ``resize_by_torch``, but by Pillow: four times as slow."""
    return tensor_of(image_of(x).resize((size, size), Image.Resampling.BICUBIC))


RESIZE = {"tensor": resize_by_torch, "pillow": resize_by_pillow}


class View:
    """An image -> one augmented view, uint8 (3, size, size), a function of the image and the seed."""

    def __init__(self, size: int, ops: Augmentation, resize: str) -> None:
        from torchvision.transforms import v2  # imports torch's compiler, which evaluation does not need

        self.size, self.ops = size, ops
        self.resize = RESIZE[resize]
        self.rand = build_randaugment(ops.rand, size) if ops.rand else None
        steps: list[Callable[[Tensor], Tensor]] = []
        if ops.flip:
            steps.append(self._flip)
        if ops.shift:
            steps.append(self._shift)
        if ops.jitter:
            s = ops.jitter
            steps.append(v2.RandomApply([v2.ColorJitter(s, s, s, min(s / 4, 0.5))], JITTERED))
        if ops.grey:
            steps.append(v2.RandomGrayscale(ops.grey))
        if ops.blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(blur_kernel(size), SIGMA)], ops.blur))
        if ops.noise:
            steps.append(self._add_noise)
        if ops.erase:
            steps.append(v2.RandomApply([self._erase], ops.erase))
        self.steps = steps

    def _flip(self, x: Tensor) -> Tensor:
        return x.flip(2) if torch.rand(1) < self.ops.flip else x

    def _shift(self, x: Tensor) -> Tensor:
        down, right = torch.randint(-self.ops.shift, self.ops.shift + 1, (2,)).tolist()
        places = torch.arange(self.size)
        last = self.size - 1  # pixels from outside repeat the edge
        return x[:, (places - down).clamp_(0, last)[:, None], (places - right).clamp_(0, last)]

    def _add_noise(self, x: Tensor) -> Tensor:
        return (x + torch.randn(x.shape) * (255 * self.ops.noise)).round().clamp(0, 255).to(torch.uint8)

    def _erase(self, x: Tensor) -> Tensor:
        area = self.size**2 * float(torch.empty(()).uniform_(*ERASED_AREA))
        ratio = math.exp(float(torch.empty(()).uniform_(-ERASED_RATIO, ERASED_RATIO)))
        height, width = (
            max(1, min(self.size, round(side))) for side in (math.sqrt(area * ratio), math.sqrt(area / ratio))
        )
        top, left = (int(torch.randint(self.size - side + 1, ())) for side in (height, width))
        x = x.clone()
        x[:, top : top + height, left : left + width] = torch.randint(256, (3, height, width), dtype=torch.uint8)
        return x

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every backend: 60 times slower
        if self.ops.crop is not None:
            top, left, height, width = random_box(x.shape[1], x.shape[2], self.ops.crop)
            x = self.resize(x[:, top : top + height, left : left + width], self.size)
        if self.rand is not None:
            random.seed(seed)  # timm's RandAugment draws from Python's and numpy's generators
            np.random.seed(seed)  # noqa: NPY002
            x = tensor_of(self.rand(image_of(x)))
        if x.shape[1:] != (self.size, self.size):
            x = resize_and_crop(image_of(x), self.size)
        for step in self.steps:
            x = step(x)
        return x


class TrainTransform:
    """An encoded image -> uint8 (3, size, size) for one view, (V, 3, size, size) for several.

    View v of draw d depends on (seed, d, v) alone, never on worker, process or earlier draws.
    ``decoder`` is that of `decoding.decode_pixels`, ``resize`` a name in RESIZE.
    """

    def __init__(self, size: int, views: list[Augmentation], seed: int, *, decoder: str, resize: str) -> None:
        self.size, self.seed, self.decoder = size, seed, decoder
        self.views = [View(size, ops, resize) for ops in views]

    @property
    def nbytes(self) -> int:
        """The bytes of its result."""
        return 3 * self.size**2 * len(self.views)

    def __call__(self, data: bytes, draw: int) -> Tensor:
        with blame_image():
            pixels = decode_pixels(data, self.decoder)
            views = [view(pixels, seed_of(self.seed, draw, v)) for v, view in enumerate(self.views)]
            return views[0] if len(views) == 1 else torch.stack(views)
