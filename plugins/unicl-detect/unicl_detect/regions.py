"""Detections for other programs and for people: regions with their class distributions, and drawn images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from unicl_cli.api import UniclError
from unicl_detect.detector import Detector
from unicl_detect.scenes import read_pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#fabed4")


def list_images(paths: Sequence[Path]) -> list[Path]:
    """Return the image files that are named, and those in the named folders, sorted."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UniclError(f"{path}: is missing", "name images, or folders with images")
        found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not found:
        raise UniclError(f"{paths[0]}: has no images", f"name a folder with {', '.join(SUFFIXES)} files")
    return found


@torch.no_grad()
def find_regions(detector: Detector, image: Tensor, most: int) -> dict[str, Any]:
    """Return up to ``most`` regions of a uint8 image (3, H, W): boxes, and the distribution over ground and classes.

    The regions are the proposals moved to their likeliest class, the surest first, without near duplicates (IoU 0.5).
    ViLBERT (Lu et al., NeurIPS 2019, section 3.1) takes 10 to 36 of them.
    """
    net: Any = detector.net
    inputs, _ = net.transform([image.float() / 255])
    maps = net.backbone(inputs.tensors)
    proposals, _ = net.rpn(inputs, maps)
    heads = net.roi_heads
    logits, moves = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, inputs.image_sizes)))
    shares = logits.float().softmax(1)  # (n, 1 + classes)
    sure, label = shares[:, 1:].max(1)
    boxes = heads.box_coder.decode(moves, proposals)[torch.arange(len(label)), label + 1]
    boxes = clip_boxes_to_image(boxes, inputs.image_sizes[0])
    kept = batched_nms(boxes, sure, torch.zeros_like(label), 0.5)[:most]
    scale = torch.tensor([image.shape[2], image.shape[1]]) / torch.tensor(inputs.image_sizes[0]).flip(0)
    corners = boxes[kept].cpu() * scale.repeat(2)
    return {"boxes": corners.tolist(), "probabilities": shares[kept].cpu().tolist()}


@torch.no_grad()
def draw_detections(detector: Detector, images: Sequence[Tensor], classes: Sequence[str], least: float) -> Tensor:
    """Return one image, uint8 (3, H, W), of all ``images`` with the boxes and masks of a score from ``least`` on."""
    drawn = [draw_one(image, detector.detect([image])[0], classes, least) for image in images]
    height, width = (max(image.shape[side] for image in drawn) for side in (1, 2))
    same = [torch.nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in drawn]
    return make_grid(same, nrow=4, padding=4, pad_value=255)


def draw_one(image: Tensor, answer: Mapping[str, Tensor], classes: Sequence[str], least: float) -> Tensor:
    """Return an image at four times its size, with its detections."""
    sure = answer["scores"] >= least
    labels = [int(label) - 1 for label in answer["labels"][sure]]
    colours: Any = [COLOURS[label % len(COLOURS)] for label in labels]
    times = max(1, 320 // max(image.shape[1:]))
    large = torch.nn.functional.interpolate(image[None].float(), scale_factor=times).squeeze(0).byte()
    if not labels:
        return large
    if "masks" in answer:
        masks = torch.nn.functional.interpolate(answer["masks"][sure], scale_factor=times).squeeze(1) >= 0.5
        large = draw_segmentation_masks(large, masks, 0.4, colours)
    names = [
        f"{classes[label]} {score:.2f}" for label, score in zip(labels, answer["scores"][sure].tolist(), strict=True)
    ]
    return draw_bounding_boxes(large, answer["boxes"][sure] * times, names, colours, width=2, label_colors="black")


def read_images(paths: Sequence[Path]) -> list[Tensor]:
    """Decode images to uint8 (3, H, W)."""
    return [read_pixels(path) for path in paths]
