"""The training of a detector, through the public `fit`; and a trained detector, loaded again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from unicl_cli.api import (
    CocoSet,
    ModuleRun,
    Plan,
    StopFlag,
    UniclError,
    freeze_idle,
    load_model,
    load_weights,
    newest_weights,
    rank,
    read_settings,
    read_tensors,
    seed_of,
    train_module,
    world_size,
    write_note,
)
from unicl_detect.detector import Detector
from unicl_detect.options import COMMAND, DetectSettings
from unicl_detect.pyramid import TowerPyramid, find_tower
from unicl_detect.scenes import SceneRows, Scenes, share_of_step, stream_scenes

HEADS = 4
"""Salt of the seed of the heads' first weights."""


def build_detector(model: str, classes: int, settings: DetectSettings) -> Detector:
    """Build a detector on the image tower of a trained model, its heads drawn from the seed."""
    loaded = load_model(model)
    tower = find_tower(loaded.step.model, loaded.name)
    tower.requires_grad_(requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(settings.seed, HEADS))
        return Detector(tower, max(loaded.transform.size), classes, settings)


def load_detector(run: Path) -> tuple[Detector, DetectSettings, Mapping[str, Any]]:
    """Load a trained detector in evaluation: the finished one, or that of the newest checkpoint."""
    facts = read_settings(run, COMMAND)
    settings = DetectSettings.model_validate({k: v for k, v in facts.items() if k in DetectSettings.model_fields})
    path = newest_weights(run)
    detector = build_detector(facts["model"], len(facts["classes"]), settings)
    load_weights(detector, read_tensors(path), str(path))
    return detector.eval(), settings, facts


def groups_of(module: nn.Module, settings: DetectSettings) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices and kernels with weight decay, all others without."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    wide = [parameter for parameter in trained if parameter.ndim > 1]
    thin = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": wide, "weight_decay": settings.weight_decay}, {"params": thin, "weight_decay": 0.0}]


def check_batch(settings: DetectSettings) -> None:
    """Raise UniclError unless the processes can share a batch equally."""
    if settings.batch % world_size():
        raise UniclError(
            f"batch {settings.batch} cannot be shared by {world_size()} processes", f"use a multiple of {world_size()}"
        )


def train_detector(
    place: ModuleRun, model: str, data: CocoSet, settings: DetectSettings, accelerator: Any, stop: StopFlag
) -> None:
    """Train a detector into a run directory, or continue it; every rank calls it."""
    check_batch(settings)
    detector = build_detector(model, len(data.classes), settings).to(accelerator.device).train()
    frozen = freeze_idle(detector, first_batch(data, settings), accelerator)
    sizes = [sum(p.numel() for p in detector.parameters()), sum(p.numel() for p in detector.net.backbone.parameters())]
    if rank() == 0:
        write_note(f"detector: {sizes[0]:,} parameters, {sizes[1]:,} of them tower and pyramid; unread: {len(frozen)}")
    step = cast("nn.Module", accelerator.prepare(detector))
    optimizer = accelerator.prepare(torch.optim.AdamW(groups_of(detector, settings), lr=settings.lr))
    plan = Plan(
        steps=settings.steps,
        seed=settings.seed,
        lr=settings.lr_at,
        grad_clip=settings.clip_norm,
        log_every=settings.log_every,
    )
    train_module(place, step, optimizer, lambda done: stream_scenes(data, settings, done), plan, accelerator, stop)


def first_batch(data: CocoSet, settings: DetectSettings) -> Scenes:
    """Return this rank's share of the first step."""
    rows = SceneRows(data, settings)
    batch = [rows[key] for key in share_of_step(0, len(data.images), settings)]
    return Scenes(*(list(column) for column in zip(*batch, strict=True)))


def count_parameters(model: str, settings: DetectSettings, classes: int) -> dict[str, Any]:
    """Return the parameters of a detector by part, and the length of its training."""
    detector = build_detector(model, classes, settings)
    backbone = cast("TowerPyramid", detector.net.backbone)
    parts: dict[str, nn.Module] = {"tower": backbone.tower, "pyramid": backbone.neck}
    parts |= {"rpn": detector.net.rpn, "heads": detector.net.roi_heads}
    sizes = {f"parameters_{name}": sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {
        "parameters": sum(sizes.values()),
        **sizes,
        "steps": settings.steps,
        "images": settings.steps * settings.batch,
    }
