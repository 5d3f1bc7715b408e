"""Towers, settings and a small set of scenes for the tests of detection."""

from pathlib import Path
from typing import Any

from torch import nn
from unicl_coco.batches import SceneRows
from unicl_detect.detector import Detector
from unicl_detect.options import DetectSettings

from unicl_cli.api import CocoSet, find_coco, read_coco, write_shape_scenes
from unicl_cli.encoders.cnn import Cnn
from unicl_cli.encoders.timm import TimmTower

SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)}
SIZE = 32


def settings_of(**changes: Any) -> DetectSettings:
    plain = {"size": SIZE, "max_size": SIZE, "heads": "small", "batch": 2, "steps": 3, "lr": 1e-3, "warmup": 0}
    return DetectSettings.model_validate({**plain, "milestones": [], "workers": 0, "log_every": 1, **changes})


def timm_tower(model: str, **args: Any) -> nn.Module:
    return TimmTower(model, pretrained=False, drop_path=0.0, image_size=SIZE, args=args, small_stem=False)


def cnn_tower() -> nn.Module:
    return Cnn(8, 3)


def detector_of(tower: nn.Module, classes: int = 6, **changes: Any) -> Detector:
    return Detector(tower, SIZE, classes, settings_of(**changes))


def scenes_in(folder: Path, *, count: int = 6, masks: bool = True) -> CocoSet:
    if not folder.exists():
        write_shape_scenes(folder, {"train": count, "test": 2}, SIZE, 3, 0)
    return read_coco(*find_coco(folder, "train", None, ("train",)), masks=masks)


def rows_of(data: CocoSet, *, masks: bool = True, flip: float = 0.5) -> SceneRows:
    return SceneRows(data, masks=masks, flip=flip, seed=0)
