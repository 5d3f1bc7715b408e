"""A small set in COCO's layout: scenes of several drawn shapes, with boxes and masks."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from unicl_cli.data.run_lengths import run_lengths
from unicl_cli.data.sources.shapes import SHAPES, draw_scene
from unicl_cli.errors import UniclError


def write_shape_scenes(folder: Path, counts: dict[str, int], size: int, most: int, seed: int) -> dict[str, int]:
    """Write ``counts`` scenes of 1 to ``most`` shapes for each split; return the number of shapes in each.

    A scene is a function of (seed, split, number). UniclError if the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UniclError(f"{folder}: exists already", "name a new folder")
    return {split: _write_split(folder, split, count, size, most, seed) for split, count in counts.items()}


def _write_split(folder: Path, split: str, count: int, size: int, most: int, seed: int) -> int:
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        coin = random.Random(f"{seed}/{split}/{number}")  # its numbers are the same on every Python
        image, placed = draw_scene(size, 1 + int(coin.random() * most), coin)
        name = f"{number:06d}.png"
        image.save(folder / split / name)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for shape in placed:
            left, top, right, bottom = shape.mask.getbbox() or (0, 0, 0, 0)
            mask = np.array(shape.mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + SHAPES.index(shape.shape),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int((mask > 0).sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [size, size], "counts": run_lengths(mask)},
                    "attributes": {"colour": shape.colour, "texture": shape.texture},
                }
            )
    kinds = [{"id": number, "name": name} for number, name in enumerate(SHAPES, 1)]
    document = {"images": images, "annotations": annotations, "categories": kinds}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document), encoding="utf-8")
    return len(annotations)
