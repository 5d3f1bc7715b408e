"""Image towers of the large recipes: parameters and FLOPs beside published figures, and their feature maps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unicl_cli.encoders.timm import TimmTower
from unicl_cli.recipe.load import load

START = "in21k-gcc15m-yfcc14m-"
PUBLISHED = {
    "swin-b": (86.7, 15.4, [(128, 4), (256, 8), (512, 16), (1024, 32)]),  # Liu et al., ICCV 2021, table 1
    "focal-b": (87.7, 15.4, [(128, 4), (256, 8), (512, 16), (1024, 32)]),  # Yang et al., NeurIPS 2022, table 1
    "vit-b": (85.8, 17.6, [(768, 16)]),  # Dosovitskiy et al., ICLR 2021, table 1; multiply-adds as timm counts them
    "vit-l": (303.2, 81.1, [(1024, 14)]),
    "vit-h": (630.8, 167.4, [(1280, 14)]),
}
"""Recipe -> millions of parameters without a classifier, billions of multiply-adds at 224 px, (channels, step)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tower_at_the_scale_of_the_paper_has_its_published_size(name: str) -> None:
    parameters, gmacs, scales = PUBLISHED[name]
    recipe = load(f"{START}{name}")
    options = recipe.model.part.options["image"].options
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        tower = TimmTower(
            options["model"],
            pretrained=False,
            drop_path=options["drop_path"],
            image_size=recipe.data.image_size,
            args={},
            small_stem=False,
        ).eval()
        x = torch.zeros(1, 3, 224, 224)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            maps = tower.pyramid(x)
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(parameters, abs=0.1)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.02)
    assert [(found.shape[1], 224 // found.shape[2]) for found in maps] == scales
