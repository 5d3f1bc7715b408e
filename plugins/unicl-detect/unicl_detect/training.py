"""The training of a detector, through the public `fit`; and a trained detector, loaded again."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from unicl_coco.batches import SceneRows, Scenes, first_scenes, stream_scenes

from unicl_cli.api import (
    CocoSet,
    ModuleRun,
    Plan,
    StopFlag,
    TowerPyramid,
    decay_groups,
    find_pyramid_tower,
    freeze_idle,
    load_model,
    load_weights,
    newest_weights,
    rank,
    read_settings,
    read_tensors,
    seed_of,
    train_module,
    write_note,
)
from unicl_detect.detector import Detector
from unicl_detect.options import COMMAND, DetectSettings

HEADS_SALT = 4
"""Salt of the seed of the heads' first weights."""


def build_detector(model: str, classes: int, settings: DetectSettings) -> Detector:
    """Build a detector on the image tower of a trained model, its heads drawn from the seed."""
    loaded = load_model(model)
    tower = find_pyramid_tower(loaded.step.model, loaded.name)
    tower.requires_grad_(requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(settings.seed, HEADS_SALT))
        return Detector(tower, max(loaded.transform.size), classes, settings)


def load_detector(run: Path) -> tuple[Detector, DetectSettings, Mapping[str, Any]]:
    """Load a trained detector in evaluation: the finished one, or that of the newest checkpoint."""
    facts = read_settings(run, COMMAND)
    settings = DetectSettings.model_validate({k: v for k, v in facts.items() if k in DetectSettings.model_fields})
    path = newest_weights(run)
    detector = build_detector(facts["model"], len(facts["classes"]), settings)
    load_weights(detector, read_tensors(path), str(path))
    return detector.eval(), settings, facts


def train_detector(
    place: ModuleRun, model: str, data: CocoSet, settings: DetectSettings, accelerator: Any, stop: StopFlag
) -> None:
    """Train a detector into a run directory, or continue it; every rank calls it."""
    rows = SceneRows(data, masks=not settings.boxes_only, flip=settings.flip, seed=settings.seed)
    first = first_scenes(rows, settings.batch)
    detector = build_detector(model, len(data.classes), settings).to(accelerator.device).train()
    frozen = freeze_idle(detector, first, accelerator)
    sizes = [sum(p.numel() for p in detector.parameters()), sum(p.numel() for p in detector.net.backbone.parameters())]
    if rank() == 0:
        write_note(f"detector: {sizes[0]:,} parameters, {sizes[1]:,} of them tower and pyramid; unread: {len(frozen)}")
    step = cast("nn.Module", accelerator.prepare(detector))
    optimizer = accelerator.prepare(torch.optim.AdamW(decay_groups(detector, settings.weight_decay), lr=settings.lr))
    plan = Plan(
        steps=settings.steps,
        seed=settings.seed,
        lr=settings.lr_at,
        grad_clip=settings.clip_norm,
        log_every=settings.log_every,
    )

    def stream(done: int) -> Iterator[tuple[int, Scenes]]:
        return stream_scenes(rows, settings.batch, range(done, settings.steps), settings.workers)

    train_module(place, step, optimizer, stream, plan, accelerator, stop)


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
