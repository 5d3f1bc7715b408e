"""Images of a detector: read as they are, and drawn with what was detected in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from unicl_cli.api import CocoImage, UniclError, decode_pixels, open_inputs, read_image

Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]
"""uint8 images (3, H, W) -> for each boxes (n, 4), labels (n,) from 1, scores (n,) and perhaps masks (n, 1, H, W)."""
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#fabed4")


def read_pixels(path: Path) -> Tensor:
    """Decode an image to uint8 (3, H, W). UniclError if it cannot be."""
    try:
        return decode_pixels(path.read_bytes()).contiguous()
    except (OSError, ValueError) as error:  # ImageError is a ValueError
        raise UniclError(f"{path}: cannot be read as an image: {error}", "restore it from a copy") from error


def read_images(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the path and the pixels of all images of files, folders and globs. UniclError for one that has none."""
    for image in open_inputs(names)[0]:
        found = read_image(image, decode_pixels)
        if isinstance(found, str):
            raise UniclError(f"{image.path}: {found}", "name images, or folders with images")
        yield image.path, found.contiguous()


def check_size(image: Tensor, scene: CocoImage, path: Path) -> None:
    """Raise UniclError unless an image has the size that its annotations are for."""
    if tuple(image.shape[1:]) != (scene.height, scene.width):
        found, annotated = f"{image.shape[2]} x {image.shape[1]}", f"{scene.width} x {scene.height}"
        raise UniclError(
            f"{path}: is {found} px, but its annotations are for {annotated}", "use the images they were made on"
        )


@torch.no_grad()
def draw_detections(detect: Detect, images: Sequence[Tensor], classes: Sequence[str], least: float) -> Tensor:
    """Return one image, uint8 (3, H, W), of all ``images`` with the boxes and masks of a score from ``least`` on."""
    drawn = [draw_one(image, detect([image])[0], classes, least) for image in images]
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
