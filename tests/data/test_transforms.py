"""Images to tensors: the geometry of evaluation, augmentations as a function of (seed, draw, view) alone."""

import io
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from unicl_cli.core.sampler import seed_of
from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.pictures import decode
from unicl_cli.data.transforms import (
    JITTERED,
    PRESETS,
    TrainTransform,
    View,
    build_augment,
    eval_transform,
    image_of,
    random_box,
    resize_and_crop,
    resize_by_torch,
    tensor_of,
)

RANDOM = [name for name in PRESETS if name != "none"]


def encoded(width=60, height=40, *, mode="RGB", form="PNG", seed=0, **options):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height)).convert(mode)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def train(name="basic", *, size=32, views=1, seed=0, **changes):
    return TrainTransform(size, [build_augment(name, changes)] * views, seed, decoder="auto", resize="tensor")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(60, 40), (33, 200), (32, 32), (5, 9)])
def test_evaluation_has_the_geometry_of_open_clip(width, height, form):
    data = encoded(width, height, form=form)
    theirs = image_transform_v2(PreprocessCfg(size=32, mean=(0, 0, 0), std=(1, 1, 1)), is_train=False)
    expected = (theirs(Image.open(io.BytesIO(data))) * 255).round().to(torch.uint8)
    got = eval_transform(data, 32)
    assert got.dtype == torch.uint8
    assert got.shape == (3, 32, 32)
    assert (got.int() - expected.int()).abs().max() <= 1


@given(side=st.integers(1, 300), other=st.integers(1, 300), size=st.sampled_from([7, 32, 64]))
def test_evaluation_frames_a_picture_as_torchvision_does(side, other, size):
    noise = np.random.default_rng(0).integers(0, 256, (other, side, 3), np.uint8)
    picture = Image.fromarray(noise)
    resized = F.resize(picture, [size], interpolation=v2.InterpolationMode.BICUBIC)
    assert torch.equal(resize_and_crop(picture, size), F.pil_to_tensor(F.center_crop(resized, [size, size])))


def test_a_picture_that_has_the_size_is_left_alone():
    data = encoded(32, 32)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    assert torch.equal(eval_transform(data, 32), expected)
    assert torch.equal(train("none")(data, 5), expected)


def test_the_orientation_of_a_photo_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = encoded(64, 64, form="PNG", exif=exif)
    upright = eval_transform(encoded(64, 64, form="PNG"), 64)
    for turned in (eval_transform(data, 64), train("none", size=64)(data, 0)):
        assert torch.equal(turned, upright.rot90(-1, (1, 2)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_becomes_three_channels(mode):
    data = encoded(mode=mode, form="TIFF" if mode == "CMYK" else "PNG")
    assert eval_transform(data, 32).shape == (3, 32, 32)
    assert train("strong")(data, 0).shape == (3, 32, 32)


@pytest.mark.parametrize("name", PRESETS)
def test_a_view_is_a_function_of_seed_draw_and_view(name):
    data, other = encoded(), encoded(seed=1)
    transform = train(name, views=2)
    expected = {draw: transform(data, draw) for draw in range(6)}
    again = train(name, views=2)
    for draw in (5, 0, 3):
        random.seed(draw)
        torch.manual_seed(draw + 100)
        np.random.seed(draw)  # noqa: NPY002 - what timm draws from
        again(other, draw + 7)  # what was drawn before does not matter
        assert torch.equal(again(data, draw), expected[draw])
    assert expected[0].shape == (2, 3, 32, 32)
    assert expected[0].dtype == torch.uint8


@pytest.mark.parametrize("name", RANDOM)
def test_draws_views_and_seeds_differ(name):
    data = encoded()
    views = torch.cat([train(name, views=2)(data, draw) for draw in range(4)])
    views = torch.cat([views, torch.stack([train(name, seed=9)(data, draw) for draw in range(4)])])
    assert len({tuple(view.flatten().tolist()) for view in views}) > 8


def test_without_augmentation_every_view_is_that_of_evaluation():
    data = encoded()
    assert torch.equal(train("none")(data, 3), eval_transform(data, 32))


@pytest.mark.slow
def test_views_are_the_same_in_another_process():
    code = (
        "import sys, json, torch; from unicl_cli.data.transforms import *\n"
        "data, how = sys.stdin.buffer.read(), {'decoder': 'auto', 'resize': 'tensor'}\n"
        "makers = {n: TrainTransform(32, [build_augment(n, {})] * 2, 4, **how) for n in PRESETS}\n"
        "views = {n: make(data, 11).flatten()[::97] for n, make in makers.items()}\n"
        "print(json.dumps({n: x.tolist() for n, x in views.items()}))"
    )
    data = encoded()
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    here = {n: train(n, views=2, seed=4)(data, 11).flatten()[::97].tolist() for n in PRESETS}
    assert json.loads(done.stdout) == here


def test_a_change_replaces_one_number_of_a_preset():
    assert build_augment("basic", {"flip": 0.0, "noise": None}) == PRESETS["basic"]._replace(flip=0.0)
    data = encoded(32, 32)
    mirrored = train("none", flip=1.0)(data, 0)
    assert torch.equal(mirrored, eval_transform(data, 32).flip(2))


def test_a_shift_moves_the_picture_and_repeats_its_edge():
    data = encoded(32, 32)
    still = eval_transform(data, 32)
    seen = set()
    for draw in range(30):
        moved = train("shift")(data, draw)
        places = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(moved[:, 4:28, 4:28], still[:, 4 + dy : 28 + dy, 4 + dx : 28 + dx])
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 10


def test_noise_has_the_deviation_asked_for():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "PNG")
    noisy = train("none", size=64, noise=0.1)(file.getvalue(), 0).float() / 255
    assert noisy.std().item() == pytest.approx(0.1, rel=0.05)
    assert noisy.mean().item() == pytest.approx(128 / 255, abs=0.01)


def test_a_crop_keeps_at_least_the_area_asked_for():
    gradient = np.tile(np.linspace(0, 255, 256).astype(np.uint8), (256, 1))
    file = io.BytesIO()
    Image.fromarray(gradient).convert("RGB").save(file, "PNG")
    spans = [
        (x[0, 0, -1].int() - x[0, 0, 0].int()).item() for x in (train("basic")(file.getvalue(), d) for d in range(40))
    ]
    widths = [abs(span) / 255 for span in spans]
    assert min(widths) > (0.5 * 3 / 4) ** 0.5 - 0.05, "area at least a half, sides at most 4:3"
    assert max(widths) > 0.9
    assert {span > 0 for span in spans} == {True, False}, "some are mirrored"


def test_erasing_turns_one_rectangle_into_noise():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "PNG")
    shares = []
    for draw in range(20):
        changed = (train("none", size=64, erase=1.0)(file.getvalue(), draw) != 128).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.9, "one rectangle"
        shares.append(changed.float().mean().item())
    assert 0.01 < min(shares) < max(shares) < 0.36
    assert torch.equal(train("none", size=64, erase=0.0)(file.getvalue(), 0), torch.full((3, 64, 64), 128).byte())


@pytest.mark.parametrize("share", [(0.5, 1.0), (0.08, 1.0), (1.0, 1.0)])
def test_a_random_crop_is_the_one_that_torchvision_draws(share):
    theirs = v2.RandomResizedCrop(8, scale=share)
    sides = random.Random(0)
    for seed in range(150):
        height, width = sides.randint(1, 30 if seed % 3 else 600), sides.randint(1, 600)
        torch.manual_seed(seed)
        expected = theirs.make_params([torch.zeros(1, height, width)]), torch.rand(1)
        torch.manual_seed(seed)
        assert (random_box(height, width, share)._asdict(), torch.rand(1)) == expected, (height, width)


@pytest.mark.parametrize(("height", "width"), [(327, 251), (375, 500), (120, 110), (224, 224), (30, 400), (300, 229)])
def test_a_crop_resized_as_a_tensor_has_pillows_levels(height, width):
    whole = decode_pixels(encoded(520, 400, form="JPEG", quality=90))
    crop = whole[:, 7 : 7 + height, 11 : 11 + width]
    rows = image_of(crop).resize((224, height), Image.Resampling.BICUBIC)  # Pillow 13 may take columns first
    expected = tensor_of(rows.resize((224, 224), Image.Resampling.BICUBIC))
    difference = (resize_by_torch(crop, 224).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    assert torch.equal(resize_by_torch(crop.contiguous(), 224), resize_by_torch(crop, 224)), "whatever the strides"


def test_pillow_does_all_of_it_on_request():
    data = encoded(90, 70, form="JPEG")
    slow = TrainTransform(32, [build_augment("basic", {})], 0, decoder="pillow", resize="pillow")
    crop = v2.RandomResizedCrop(32, scale=(0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    flip = v2.RandomHorizontalFlip(0.5)
    for draw in range(10):
        torch.default_generator.manual_seed(seed_of(0, draw, 0))
        expected = tensor_of(flip(crop(decode(data))))  # torchvision on an image
        assert torch.equal(slow(data, draw), expected)
        assert (slow(data, draw).int() - train()(data, draw).int()).abs().max() <= 2


def test_the_augmentation_of_simclr_has_the_published_numbers():
    """Appendix A: area 8 to 100 %, flip; jitter 0.8 s with hue 0.2 s on 4 of 5; grey 0.2; blur 0.5, a tenth wide."""
    view = View(224, build_augment("simclr", {}), "tensor")
    assert (view.ops.crop, view.ops.flip, view.ops.grey, view.ops.blur) == ((0.08, 1.0), 0.5, 0.2, 0.5)
    (jitter,) = (step for step in view.steps if isinstance(step, v2.RandomApply) and step.p == JITTERED)
    (colour,) = jitter.transforms
    for bounds in (colour.brightness, colour.contrast, colour.saturation):
        assert bounds == pytest.approx((0.2, 1.8))
    assert colour.hue == pytest.approx((-0.2, 0.2))
    (blur,) = (step.transforms[0] for step in view.steps if isinstance(step, v2.RandomApply) and step.p == 0.5)
    assert (blur.kernel_size, blur.sigma) == ((23, 23), pytest.approx((0.1, 2.0)))
    names = [type(step).__name__ for step in view.steps]
    assert names == ["method", "RandomApply", "RandomGrayscale", "RandomApply"], "flip, colour, grey, blur"
    cifar = build_augment("simclr", {"jitter": 0.4, "blur": 0.0})
    assert (cifar.jitter, cifar.blur, cifar.grey) == (0.4, 0.0, 0.2), "strength 0.5, no blur"


def test_views_have_augmentations_of_their_own():
    data = encoded()
    one_sided = [build_augment("none", {}), build_augment("simclr", {})]
    views = [TrainTransform(32, one_sided, 0, decoder="auto", resize="tensor")(data, draw) for draw in range(3)]
    assert all(torch.equal(view[0], eval_transform(data, 32)) for view in views), "the first is never changed"
    assert len({tuple(view[1].flatten().tolist()) for view in views}) == 3
