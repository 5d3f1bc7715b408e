"""The detector on towers of each kind: its pyramid, its loss, its frozen BatchNorm, its choice of samples."""

from pathlib import Path

import detect_toys as toys
import pytest
import torch
from detect_toys import SIZE, SWIN, cnn_tower, detector_of, rows_of, scenes_in, timm_tower
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from unicl_coco.batches import Scenes, first_scenes
from unicl_detect.detector import DrawSampler

from unicl_cli.api import TowerPyramid, UniclError, find_pyramid_tower, freeze_idle, start_accelerator


def small_resnet() -> nn.Module:
    return timm_tower("resnet18", channels=(8, 16, 24, 32))


TOWERS = {
    "resnet18": (small_resnet, [4, 8, 16, 32]),
    "swin": (lambda: timm_tower("swin_tiny_patch4_window7_224", **SWIN), [4, 8, 16, 32]),
    "vit": (lambda: timm_tower("vit_tiny_patch16_224", depth=2), [4, 8, 16, 32]),
    "cnn": (cnn_tower, [2, 4, 8]),
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return first_scenes(rows_of(scenes_in(tmp_path_factory.mktemp("toys") / "scenes")), 2)


@pytest.mark.parametrize("name", TOWERS)
def test_every_parameter_that_is_read_learns_and_the_answer_has_boxes_and_masks(name: str, batch: Scenes) -> None:
    make, strides = TOWERS[name]
    detector = detector_of(make()).train()
    backbone = detector.net.backbone
    assert isinstance(backbone, TowerPyramid)
    assert backbone.strides == strides
    frozen = freeze_idle(detector, batch, start_accelerator("fp32", "cpu"))
    assert all(part.startswith("net.backbone.tower") for part in frozen)
    detector(batch)["loss"].backward()
    missed = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert missed == []
    answers = detector.eval().detect(batch.images)
    assert [set(answer) for answer in answers] == [{"boxes", "labels", "scores", "masks"}] * 2
    assert all(answer["masks"].shape[1:] == (1, SIZE, SIZE) for answer in answers)


def test_levels_of_the_pyramid_halve_and_a_patch_of_14_px_is_brought_to_steps_of_16() -> None:
    tower = timm_tower("vit_tiny_patch16_224", depth=1)
    pyramid = TowerPyramid(tower, 32, 8)
    maps = pyramid(torch.zeros(1, 3, 64, 96))
    assert [tuple(found.shape[1:]) for found in maps.values()] == [
        (8, 16, 24),
        (8, 8, 12),
        (8, 4, 6),
        (8, 2, 3),
        (8, 1, 2),
    ]
    odd = toys.TimmTower(
        "vit_small_patch14_dinov2", pretrained=False, drop_path=0.0, image_size=56, args={"depth": 1}, small_stem=False
    )
    pyramid = TowerPyramid(odd, 56, 8)
    assert (pyramid.strides, pyramid.divisor) == ([4, 8, 16, 32], 224)
    assert [found.shape[2] for found in pyramid(torch.zeros(1, 3, 224, 224)).values()] == [56, 28, 14, 7, 4]


def test_the_parts_of_the_loss_are_torchvisions_in_one_process(batch: Scenes) -> None:
    detector = detector_of(cnn_tower()).train()
    out = detector(batch)
    for sampler in detector.samplers:
        sampler.begin(batch.draws)
    theirs = detector.net([image.float() / 255 for image in batch.images], batch.targets)
    assert set(theirs) == set(out) - {"loss"}
    for name, value in theirs.items():
        torch.testing.assert_close(out[name], value)
    torch.testing.assert_close(out["loss"], sum(theirs.values()))


def test_an_image_without_objects_keeps_every_parameter_in_the_step(batch: Scenes) -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    empty["masks"] = torch.zeros(0, SIZE, SIZE, dtype=torch.uint8)
    detector = detector_of(cnn_tower()).train()
    freeze_idle(detector, batch, start_accelerator("fp32", "cpu"))
    out = detector(Scenes([batch.images[0]] * 2, [empty, empty], [0, 1]))
    out["loss"].backward()
    assert torch.isfinite(out["loss"])
    assert out["loss_mask"] == 0
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_batch_norm_of_the_tower_keeps_statistics_and_weights(batch: Scenes) -> None:
    tower = small_resnet()
    detector = detector_of(tower).train()
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    detector(batch)["loss"].backward()
    assert not any(norm.training or any(p.requires_grad for p in norm.parameters()) for norm in norms)
    assert all(torch.equal(a, norm.running_mean) for a, norm in zip(before, norms, strict=True))  # pyright: ignore


def test_a_frozen_tower_gets_no_gradient_and_stays_in_evaluation(batch: Scenes) -> None:
    detector = detector_of(cnn_tower(), freeze=True).train()
    detector(batch)["loss"].backward()
    tower = detector.net.backbone.tower  # pyright: ignore
    assert not tower.training  # pyright: ignore
    assert all(p.grad is None for p in tower.parameters())  # pyright: ignore


def test_pixels_are_normalised_with_the_towers_own_numbers() -> None:
    transform = detector_of(small_resnet()).net.transform
    assert transform.image_mean == [0.485, 0.456, 0.406]  # pyright: ignore
    assert detector_of(cnn_tower()).net.transform.image_mean == [0.5] * 3  # pyright: ignore


def test_boxes_only_gives_no_masks_and_full_heads_are_torchvisions() -> None:
    assert not detector_of(cnn_tower(), boxes_only=True).net.roi_heads.has_mask()  # pyright: ignore
    with torch.device("meta"):
        full = detector_of(cnn_tower(), heads="full").net
        theirs = MaskRCNN(TowerPyramid(cnn_tower(), SIZE, 256), num_classes=7)
    assert [p.shape for p in full.roi_heads.parameters()] == [p.shape for p in theirs.roi_heads.parameters()]


def test_the_choice_of_samples_depends_on_seed_and_draw_alone() -> None:
    kinds = [torch.tensor([1] * 5 + [0] * 40 + [-1] * 5)] * 2
    one, other = DrawSampler(16, 0.25, 0, 0), DrawSampler(16, 0.25, 0, 0)
    one.begin([4, 9])
    other.begin([9])
    (_, a), (_, b) = one(kinds)
    assert torch.equal(b, other(kinds[1:])[1][0])
    assert not torch.equal(a, b)
    theirs, _ = BalancedPositiveNegativeSampler(16, 0.25)(kinds)
    assert (one.positive, one.chosen) == (int(sum(found.sum() for found in theirs)), 32)
    few = DrawSampler(16, 0.25, 0, 0)
    few.begin([0])
    few([torch.tensor([1, 0, 0, -1])])
    assert (few.positive, few.chosen) == (1, 3)


def test_a_model_without_maps_is_refused_in_one_line() -> None:
    for model in (nn.Linear(2, 2), nn.ModuleDict({"image": nn.Linear(2, 2)})):
        with pytest.raises(UniclError, match=r"model runs/x: its image tower gives no feature maps") as caught:
            find_pyramid_tower(model, "runs/x")
        assert caught.value.hint == "use a model with the image tower timm, cnn or open_clip"


def test_mask_r_cnn_on_swin_t_has_the_published_size() -> None:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        tower = toys.TimmTower(
            "swin_tiny_patch4_window7_224", pretrained=False, drop_path=0.2, image_size=224, args={}, small_stem=False
        )
        detector = detector_of(tower, 80, heads="full")
    count = sum(p.numel() for p in detector.parameters())
    assert count == pytest.approx(47.8e6, rel=0.005)  # Liu et al., ICCV 2021; Yang et al., NeurIPS 2022, table 5


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_the_loss_falls_by_30_percent_on_one_image(name: str, batch: Scenes) -> None:
    torch.manual_seed(0)
    detector = detector_of(TOWERS[name][0]()).train()
    one = Scenes(batch.images[:1], batch.targets[:1], batch.draws[:1])
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    losses: list[float] = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = detector(one)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.7 * losses[0]


def test_the_scenes_on_disk_are_the_same_for_one_seed(tmp_path: Path) -> None:
    scenes_in(tmp_path / "a")
    scenes_in(tmp_path / "b")
    for file in sorted((tmp_path / "a").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
