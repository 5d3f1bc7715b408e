"""Regions of images for models that read them along with words. Factories, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Count = Annotated[int, Field(gt=0, le=65536)]


def build_regions(
    *,
    model: str,
    boxes: Literal["grid", "media"] = "grid",
    most: Count = 36,
    image_size: int,
    moves_pixels: bool,
    stored: Path | None,
) -> nn.Module:
    """Regions that a trained run sees, the folder `model`: the cells of its image tower's grid, or boxes of the corpus.

    Their class distribution is the run's zero-shot answer to the region cut out. Boxes come from the row's media
    `boxes`, at most `most` in an image.
    """
    from pathlib import Path

    from unicl_regions.run_regions import RunRegions

    run = Path(model).expanduser() if stored is None else stored
    return RunRegions(run, boxes, most, image_size=image_size, moves=moves_pixels)


def build_rcnn(*, weights: str | None = None, classes: Count = 91, most: Count = 36, stored: Path | None) -> nn.Module:
    """Regions that torchvision's Faster R-CNN (`fasterrcnn_resnet50_fpn_v2`) detects, and its class distribution.

    `weights` is a file of its state_dict, `classes` their number with background.
    """
    from pathlib import Path

    from unicl_regions.rcnn_regions import RcnnRegions

    file = None if weights is None else Path(weights).expanduser()
    return RcnnRegions(file if stored is None else stored / "detector.pt", classes, most)
