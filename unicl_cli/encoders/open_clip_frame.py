"""The resizing and cropping of an open_clip model in evaluation, equal to open_clip's own transforms."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from unicl_cli.core.framing import crop_words, resize_middle, short_side_size, square_words

Step = Callable[[Image.Image], Image.Image]


class Frame(NamedTuple):
    """open_clip's preprocessing for one model: an image -> an image of ``size`` (height, width).

    ``mode`` is open_clip's ``resize_mode``. ``crop_or_pad`` are its steps after the resizing, for mode longest.
    """

    size: tuple[int, int]
    mode: str
    resample: Image.Resampling
    crop_or_pad: tuple[Step, ...]
    fill: Any

    def __call__(self, image: Image.Image, /) -> Image.Image:
        height, width = self.size
        if self.mode == "squash":
            return image.resize((width, height), self.resample)
        if self.mode == "shortest":
            return resize_middle(image, self.scaled_size(image), (width, height), self.resample)
        image = image.resize(self.scaled_size(image), self.resample)
        for step in self.crop_or_pad:
            image = step(image)
        return image

    def scaled_size(self, image: Image.Image) -> tuple[int, int]:
        """Return (width, height) of the resized whole image: at least one pixel each."""
        height, width = self.size
        if self.mode == "shortest" and height == width:
            return short_side_size(image.size, height)
        choose = max if self.mode == "longest" else min
        ratio = choose(image.width / width, image.height / height)
        return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))

    @property
    def words(self) -> tuple[str, ...]:
        """The steps in words, for a reader that has no open_clip."""
        height, width = self.size
        filtered = f"{self.resample.name.lower()}, antialiased"
        if self.mode == "squash":
            return (f"resize to height {height} and width {width}, {filtered}",)
        if self.mode == "longest":
            return (
                f"divide both sides by the larger of width / {width} and height / {height}, round each to the nearest "
                f"whole number, at least 1, and resize to that, {filtered}",
                f"pad around the centre with the colour {self.fill} to height {height} and width {width}; an odd pixel "
                "goes to the right or the bottom",
            )
        if height == width:
            return square_words(height, filtered)
        return (
            f"divide both sides by the smaller of width / {width} and height / {height}, round each to the nearest "
            f"whole number, and resize to that, {filtered}",
            crop_words(height, width),
        )


def frame_of(cfg: PreprocessCfg) -> Frame:
    """Return the frame of a preprocessing configuration."""
    size = (cfg.size, cfg.size) if isinstance(cfg.size, int) else (cfg.size[0], cfg.size[1])
    own: Sequence[Step] = cast("Any", image_transform_v2(cfg, is_train=False)).transforms
    bilinear = cfg.interpolation == "bilinear" and (cfg.resize_mode != "shortest" or size[0] == size[1])
    resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    steps = tuple(own[1:-3])  # without: resize, to RGB, to a tensor, normalise
    return Frame(size, cfg.resize_mode or "shortest", resample, steps, cfg.fill_color)


def three_numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    """Return one number per channel; a single number stands for all three."""
    return (value,) * 3 if isinstance(value, float | int) else tuple(value)
