"""Feature maps of towers: their scales and channels, other image sizes, and the towers that have none."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from unicl_cli.encoders.cnn import Cnn
from unicl_cli.encoders.pyramid import open_clip_pyramid
from unicl_cli.encoders.timm import TimmTower
from unicl_cli.errors import UniclError

SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)}
TOWERS: list[tuple[str, dict[str, Any], list[tuple[int, int]]]] = [
    ("resnet18", {}, [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)]),
    ("swin_tiny_patch4_window7_224", SWIN, [(24, 4), (48, 8), (96, 16), (192, 32)]),
    ("convnext_atto", {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}, [(8, 4), (16, 8), (24, 16), (32, 32)]),
    ("vit_tiny_patch16_224", {"depth": 2}, [(192, 16)]),
]
"""Model, its args, and the (channels, step) of its maps."""


def tower_of(model: str, args: dict[str, Any]) -> TimmTower:
    return TimmTower(model, pretrained=False, drop_path=0.0, image_size=64, args=args, small_stem=False).eval()


def steps_of(maps: list[Tensor], height: int, width: int) -> list[tuple[int, int]]:
    """Return (channels, step) of each map, whose grid fits the image in both directions."""
    assert all(height // x.shape[2] == width // x.shape[3] for x in maps)
    return [(x.shape[1], height // x.shape[2]) for x in maps]


@pytest.mark.parametrize(("model", "args", "scales"), TOWERS)
def test_a_tower_gives_its_maps_for_its_own_size_and_for_any_other(
    model: str, args: dict[str, Any], scales: list[tuple[int, int]]
) -> None:
    tower, x = tower_of(model, args), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tower(x)
        assert steps_of(tower.pyramid(x), 64, 64) == scales
        assert steps_of(tower.pyramid(torch.randn(1, 3, 96, 160)), 96, 160) == scales
        assert torch.equal(tower(x), before)  # opening it for other sizes changes nothing at its own


@pytest.mark.parametrize("place", [1, 3])
def test_the_last_map_of_swin_and_vit_is_what_the_tower_pools(place: int) -> None:
    model, args, _ = TOWERS[place]
    tower, x = tower_of(model, args), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        last = tower.pyramid(x)[-1].flatten(2).transpose(1, 2)  # (1, N, width)
        torch.testing.assert_close(tower.model.norm(last), tower.tokens(x)[:, -last.shape[1] :])  # pyright: ignore


def test_trained_weights_are_those_of_the_maps() -> None:
    tower, x = tower_of("swin_tiny_patch4_window7_224", SWIN), torch.randn(1, 3, 64, 64)
    sum(found.square().mean() for found in tower.pyramid(x)).backward()
    reached = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in tower.named_parameters()} - reached == {"model.norm.weight", "model.norm.bias"}


def test_the_cnn_gives_the_output_of_each_stage() -> None:
    maps = Cnn(8, 3).pyramid(torch.randn(2, 3, 40, 56))
    assert steps_of(maps, 40, 56) == [(8, 2), (16, 4), (32, 8)]


def test_open_clips_vit_interpolates_its_positions() -> None:
    visual = open_clip.transformer.VisionTransformer(
        image_size=64, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (own,) = open_clip_pyramid(visual, x)
        states = visual.transformer(visual._embeds(x))
        torch.testing.assert_close(own.flatten(2).transpose(1, 2), states[:, 1:])
        assert open_clip_pyramid(visual, torch.randn(1, 3, 32, 96))[0].shape == (1, 32, 2, 6)


def test_open_clips_resnet_gives_four_scales() -> None:
    visual = open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), output_dim=8, heads=2, image_size=64, width=8)
    assert steps_of(open_clip_pyramid(visual, torch.randn(1, 3, 96, 64)), 96, 64) == [
        (32, 4),
        (64, 8),
        (128, 16),
        (256, 32),
    ]


def test_a_tower_of_one_size_is_refused_in_one_line_at_another() -> None:
    tower = TimmTower("mixer_s32_224", pretrained=False, drop_path=0.0, image_size=224, args={}, small_stem=False)
    with pytest.raises(UniclError, match=r"mixer_s32_224: gives no feature maps of images of 160 x 96 px: ") as caught:
        tower.pyramid(torch.zeros(1, 3, 96, 160))
    assert caught.value.hint == "use another image tower: a ResNet, ConvNeXt, Swin, FocalNet or ViT"


def test_a_model_without_maps_in_timm_is_refused_in_one_line() -> None:
    tower = TimmTower("resnet18", pretrained=False, drop_path=0.0, image_size=32, args={}, small_stem=False)
    bare = torch.nn.Module()
    bare.pretrained_cfg = {"architecture": "old_net"}  # pyright: ignore
    tower.model = bare
    with pytest.raises(UniclError, match="old_net: timm has no feature maps of this model"):
        tower.pyramid(torch.zeros(1, 3, 32, 32))
