import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from unicl_cli.encoders.open_clip_frame import frame_of

SIDES = [(40, 30), (30, 40), (33, 33), (7, 90), (200, 9), (24, 24), (64, 48)]


def noise(sides):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [24, (24, 24), (20, 31), (48, 16)])
def test_a_frame_gives_the_pixels_of_open_clips_transforms(size, mode, interpolation):
    cfg = PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation, fill_color=9)
    theirs = image_transform_v2(cfg, is_train=False).transforms[:-2]  # without: to a tensor, normalise
    frame = frame_of(cfg)
    for sides in SIDES:
        image = expected = noise(sides)
        for step in theirs:
            expected = step(expected)
        assert np.array_equal(pil_to_tensor(frame(image)), pil_to_tensor(expected)), sides
        assert frame(image).size == frame.size[::-1]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_a_thin_image_is_framed_without_its_whole(mode):
    frame = frame_of(PreprocessCfg(size=224, resize_mode=mode))
    for sides in ((60_000, 1), (1, 60_000)):
        assert frame(Image.new("RGB", sides, "red")).size == (224, 224)
