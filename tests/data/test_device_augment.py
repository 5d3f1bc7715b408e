"""Augmentation on the device: each step is torchvision's, each sample a function of (seed, draw, view) alone."""

import numpy as np
import pytest
import torch
from on_device import needs_card
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from unicl_cli.core.sampler import U64
from unicl_cli.core.sampler import scramble as scramble_numpy
from unicl_cli.data.device_augment import (
    COLOURS,
    DeviceAugment,
    SampleRandom,
    add_noise,
    blur,
    erase,
    pixel_bits,
    scramble_tensor,
    shift,
    to_grey,
    to_unit,
)
from unicl_cli.data.transforms import SIGMA, View, blur_kernel, build_augment

STRONG = build_augment("simclr", {"crop": None, "shift": 3, "noise": 0.05, "erase": 0.5})._replace(crop=None)
FACTORS = (0.21, 0.93, 1.37, 1.79)


def pictures(n, size=32, seed=0):
    noise = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic", antialias=True)
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


def column(*values):
    return torch.tensor(values)[:, None, None, None]


def test_the_hash_is_that_of_the_sampler():
    x = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    with np.errstate(over="ignore"):
        expected: U64 = scramble_numpy(x)
    assert torch.equal(scramble_tensor(torch.from_numpy(x.view(np.int64))), torch.from_numpy(expected.view(np.int64)))


def test_uniform_numbers_are_uniform_and_lanes_draws_views_and_seeds_independent():
    draws = torch.arange(20_000)
    lanes = [SampleRandom(seed, view, draws).uniform(lane) for seed, view, lane in
             ((0, 0, "flip"), (0, 0, "grey"), (0, 1, "flip"), (1, 0, "flip"), (2**40, 0, "flip"))]  # fmt: skip
    lanes.append(SampleRandom(0, 0, draws + 20_000).uniform("flip"))
    for x in lanes:
        assert 0 <= x.min() < 1e-3
        assert 1 - 1e-3 < x.max() < 1
        counts = torch.histc(x, 50, 0, 1)
        assert ((counts - 400).square() / 400).sum() < 95, "chi square, 49 degrees: p > 1e-4"
    correlations = torch.corrcoef(torch.stack([*lanes, lanes[0].roll(1)])) - torch.eye(7)
    assert correlations.abs().max() < 0.03
    bits = pixel_bits(SampleRandom(0, 0, torch.arange(3)).key("noise"), (3, 40, 40))
    flat = torch.stack([to_unit(bits).flatten(1), to_unit(bits << 24).flatten(1)]).flatten(0, 1)
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.06


@pytest.mark.parametrize(
    ("name", "factors", "theirs"),
    [("brightness", FACTORS, F.adjust_brightness), ("contrast", FACTORS, F.adjust_contrast),
     ("saturation", FACTORS, F.adjust_saturation), ("hue", (-0.2, -0.01, 0.07, 0.5), F.adjust_hue)],
)  # fmt: skip
def test_colours_change_as_torchvision_changes_them(name, factors, theirs):
    x = pictures(4)
    if name == "hue":
        x[0, :, :4] = 77  # grey has none
    got = COLOURS[name](x, column(*factors))
    expected = torch.stack([theirs(one, factor) for one, factor in zip(x, factors, strict=True)])
    difference = (got.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


def test_grey_and_blur_are_torchvisions():
    x = pictures(4)
    assert torch.equal(to_grey(x), torch.stack([F.rgb_to_grayscale(one, 3) for one in x]))
    for size in (8, 32, 64):
        sigmas = (0.1, 0.7, 1.4, 2.0)
        x = pictures(4, size)
        expected = torch.stack(
            [F.gaussian_blur(o, [blur_kernel(size)] * 2, [s]) for o, s in zip(x, sigmas, strict=True)]
        )
        difference = (blur(x, column(*sigmas)).int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.001


def test_a_shift_repeats_the_edge():
    x = pictures(3, 8)
    got = shift(x, torch.tensor([0, 2, -3]), torch.tensor([0, -1, 2]))
    padded = torch.nn.functional.pad(x.float(), (3, 3, 3, 3), mode="replicate").to(torch.uint8)
    for n, (down, right) in enumerate(((0, 0), (2, -1), (-3, 2))):
        assert torch.equal(got[n], padded[n, :, 3 - down : 11 - down, 3 - right : 11 - right])


@pytest.mark.parametrize("views", [1, 2])
def test_a_sample_depends_on_seed_draw_and_view_alone(views):
    many = DeviceAugment([STRONG] * views, 3)
    x, draws = pictures(150), torch.randperm(10**6)[:150]
    x = x if views == 1 else torch.stack([x, x], 1)
    whole = many(x, draws)
    assert whole.dtype == torch.uint8
    assert whole.shape == x.shape
    order = torch.randperm(150)
    torch.manual_seed(5)  # nobody's
    for parts in (1, 2, 3, 7):
        split = [
            many(a, b) for a, b in zip(x[order].tensor_split(parts), draws[order].tensor_split(parts), strict=True)
        ]
        assert torch.equal(torch.cat(split), whole[order])
    assert not torch.equal(DeviceAugment([STRONG] * views, 4)(x, draws), whole)
    if views == 2:
        assert not torch.equal(whole[:, 0], whole[:, 1])


def test_nothing_asked_for_leaves_the_pictures_alone():
    x = pictures(5)
    assert torch.equal(DeviceAugment([build_augment("none", {})], 0)(x, torch.arange(5)), x)


def statistics(x):
    """Mean and deviation of brightness, of saturation, of roughness: what each step of an augmentation moves."""
    x = x.float()
    rough = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    colour = (x - x.mean(1, keepdim=True)).abs().mean((1, 2, 3))
    spread = x.std((1, 2, 3))
    return torch.stack([x.mean((1, 2, 3)), spread, colour, rough, x[:, 0].mean((1, 2)) - x[:, 2].mean((1, 2))], 1)


@pytest.mark.parametrize(
    "changes",
    [{"flip": 0.5}, {"shift": 4}, {"jitter": 0.8}, {"grey": 0.3}, {"blur": 0.5}, {"noise": 0.1}, {"erase": 0.5},
     {"flip": 0.5, "jitter": 0.4, "grey": 0.2, "blur": 0.5, "erase": 0.3}],
    ids=lambda changes: "+".join(changes),
)  # fmt: skip
def test_what_happens_is_distributed_as_in_the_loader(changes):
    ops, n = build_augment("none", changes), 800
    x = pictures(1)
    x = torch.cat([x[:, :, :, :16], x[:, :, :, 16:] // 2], 3)  # left and right differ
    view = View(32, ops, "tensor")
    theirs = torch.stack([view(x[0], seed) for seed in range(n)])
    ours = DeviceAugment([ops], 0)(x.expand(n, -1, -1, -1), torch.arange(n))
    a, b = statistics(theirs), statistics(ours)
    error = ((a.var(0) + b.var(0)) / n).sqrt() + 1e-3
    assert ((a.mean(0) - b.mean(0)).abs() / error).max() < 4.5
    cells = [(y.float().mean(0), y.float().var(0)) for y in (theirs, ours)]
    error = ((cells[0][1] + cells[1][1]) / n).sqrt() + 0.5
    assert ((cells[0][0] - cells[1][0]).abs() / error).max() < 5.5, "each pixel on its own"
    for one, other in zip(a.T, b.T, strict=True):  # Kolmogorov and Smirnov: the whole distribution
        places = torch.linspace(0, 1, 21)[1:-1]
        cuts = torch.quantile(torch.cat([one, other]), places)
        assert ((one[:, None] <= cuts).float().mean(0) - (other[:, None] <= cuts).float().mean(0)).abs().max() < 0.1


def test_noise_has_the_deviation_asked_for_and_no_two_pixels_share_it():
    x = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    got = add_noise(x, SampleRandom(0, 0, torch.arange(4)).key("noise"), 0.1).float() / 255
    assert got.std((1, 2, 3)).tolist() == pytest.approx([0.1] * 4, rel=0.05)
    assert got.mean().item() == pytest.approx(128 / 255, abs=2e-3)
    assert (torch.corrcoef(got.flatten(1)) - torch.eye(4)).abs().max() < 0.04
    kurtosis = ((got - got.mean()) / got.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.15)


def test_erasing_turns_one_rectangle_into_noise():
    x = torch.full((60, 3, 64, 64), 128, dtype=torch.uint8)
    changed = (erase(x, SampleRandom(0, 0, torch.arange(60)), 1.0) != 128).any(1)
    shares = changed.float().mean((1, 2))
    assert 0.01 < shares.min() < shares.max() < 0.36
    for one in changed:
        rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
        assert one[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float().mean() > 0.9


def test_the_blur_of_both_has_the_same_size_and_spread():
    steps = View(64, build_augment("simclr", {}), "tensor").steps
    blur = next(s for s in steps if isinstance(s, v2.RandomApply) and isinstance(s.transforms[0], v2.GaussianBlur))
    assert tuple(blur.transforms[0].sigma) == SIGMA
    assert blur.transforms[0].kernel_size[0] == blur_kernel(64)


@pytest.mark.gpu
@needs_card
def test_a_gpu_augments_as_the_cpu_does():
    many, x, draws = DeviceAugment([STRONG], 0), pictures(100), torch.arange(100)
    difference = (many(x.cuda(), draws).cpu().int() - many(x, draws).int()).abs()
    assert (difference > 1).float().mean() < 1e-3
