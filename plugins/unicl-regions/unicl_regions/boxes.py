"""Boxes of regions: their five numbers, the cells of a grid, and boxes that the rows of a corpus carry as media."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unicl_cli.api import Drawn, UniclError, parse_json

Rows = Iterable[tuple[str, Mapping[str, bytes], tuple[int, int]]]
"""The key, the media and the image's (width, height) of each row."""


class Regions(NamedTuple):
    """R regions of each image. ``boxes`` are (x1 / W, y1 / H, x2 / W, y2 / H, area / (W H))."""

    features: Tensor
    """(b, R, F)."""
    boxes: Tensor
    """(b, R, 5)."""
    there: Tensor
    """bool (b, R): False for padding."""
    classes: Tensor | None = None
    """(b, R, K): their class distributions, where they come with the features."""


def five_numbers(corners: Tensor, width: float, height: float) -> Tensor:
    """Encode (…, 4) corners in pixels as (x1 / W, y1 / H, x2 / W, y2 / H, area / (W H)), (…, 5) (ViLBERT, 3.1)."""
    scaled = corners / corners.new_tensor([width, height, width, height])
    return torch.cat([scaled, (scaled[..., 2:] - scaled[..., :2]).prod(-1, keepdim=True)], -1)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of (b, R, 4+) and (b, S, 4+) corners, (b, R, S); 0 for an empty box."""
    one, two = boxes[..., None, :4], others[..., None, :, :4]
    sides = torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2])
    both = sides.clamp(min=0).prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (two[..., 2:] - two[..., :2]).prod(-1) - both
    return both / union.clamp(min=1e-12)


def grid_boxes(tokens: int) -> Tensor:
    """Return the cells of a square grid, (1, R, 5), row by row; one token more than a square is a class token."""
    side = math.isqrt(tokens)
    if tokens - side**2 > 1:
        raise UniclError(f"model.regions: {tokens} image tokens are not a square grid", "use another image tower")
    ys, xs = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    return five_numbers(torch.stack([xs, ys, xs + 1 / side, ys + 1 / side], -1).view(1, -1, 4), 1, 1)


class RowBoxes(NamedTuple):
    """The boxes of a row, (n, 5), the number of its target, and the ``side`` in pixels of the image they are for."""

    boxes: Tensor
    target: int | None = None
    side: float | None = None


def parse_boxes(name: str, media: Mapping[str, bytes]) -> RowBoxes:
    """Return what a row's media say of its boxes; UniclError if they do not fit the image that they say.

    The media `boxes` is JSON with ``width``, ``height``, ``boxes`` of four corner numbers in pixels and, for referring
    expressions, ``target``, the number of the box that the text names. An error calls the row by its ``name``.
    """
    if "boxes" not in media:
        return RowBoxes(torch.zeros(0, 5))
    hint = "fix the boxes of the data set and prepare it again"
    try:
        found = parse_json(media["boxes"])
        width, height = float(found["width"]), float(found["height"])
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise ValueError("an image without pixels")
        corners = torch.tensor(found["boxes"], dtype=torch.float64).view(-1, 4)
        target = found.get("target")
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise UniclError(f"row '{name}': boxes: not JSON with width, height and boxes", hint) from error
    if width != height:
        raise UniclError(f"row '{name}': boxes: an image of {width:g}×{height:g} px is cropped to a square", hint)
    x1, y1, x2, y2 = corners.T
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
    if not bool(inside.all()):
        number = int((~inside).nonzero()[0])
        raise UniclError(f"row '{name}': box {number} {corners[number].tolist()} is empty or outside the image", hint)
    if target is not None and not (type(target) is int and 0 <= target < len(corners)):
        raise UniclError(f"row '{name}': target {target!r} is not the number of a box", hint)
    return RowBoxes(five_numbers(corners, width, height).float(), target, width)


def check_boxes(rows: Rows, *, most: int) -> list[str]:
    """Check the boxes of all rows before the first is used; return warnings with the number of doubtful rows.

    Doubtful are rows without a box, and rows whose image has another size than its boxes are for: a corpus may keep
    smaller images. UniclError if a row has more than ``most``, if its image is not a square, or if no row has a box.
    """
    total = lacking = 0
    scaled: list[str] = []
    for name, media, (width, height) in rows:
        found = parse_boxes(name, media)
        count = len(found.boxes)
        if count and width != height:
            raise UniclError(
                f"row '{name}': boxes are for {found.side:g}×{found.side:g} px, but the image has {width}×{height}",
                "fix the boxes of the data set and prepare it again",
            )
        if count and found.side != width:
            scaled.append(f"row '{name}' is for {found.side:g} px and has {width}")
        if count > most:
            raise UniclError(
                f"row '{name}': {count} boxes, more than model.regions.most={most}", f"set model.regions.most={count}"
            )
        total, lacking = total + 1, lacking + (count == 0)
    if lacking == total:
        raise UniclError("boxes: no row has any", "prepare a corpus with boxes, or set model.regions.boxes=grid")
    warnings = (
        [f"{lacking:,} of {total:,} rows have no boxes: the model sees nothing of their images"] if lacking else []
    )
    if scaled:
        warning = f"{len(scaled):,} of {total:,} rows have boxes for another size of their image: the boxes are scaled"
        warnings.append(f"{warning} (first: {scaled[0]})")
    return warnings


def read_boxes(drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, most: int) -> dict[str, Tensor]:
    """Return ``boxes`` (b, most, 5) and ``region_mask`` bool (b, most), from the rows' media `boxes`."""
    del tokens, text_index
    padded, there = torch.zeros(len(drawn), most, 5), torch.zeros(len(drawn), most, dtype=torch.bool)
    for row, one in enumerate(drawn):
        boxes = parse_boxes(one.key, one.media).boxes
        padded[row, : len(boxes)], there[row, : len(boxes)] = boxes, True
    return {"boxes": padded, "region_mask": there}


def check_targets(rows: Rows) -> list[str]:
    """Check the targets of all rows before the first is used; return a warning with the number of rows without one.

    UniclError if no row has a target.
    """
    targets = [parse_boxes(name, media).target for name, media, _ in rows]
    lacking = targets.count(None)
    if lacking == len(targets):
        raise UniclError("targets: no row names one of its boxes", 'prepare such a corpus, such as "scenes?task=refer"')
    if not lacking:
        return []
    return [f"{lacking:,} of {len(targets):,} rows name none of their boxes and are not trained on"]


def read_targets(drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor) -> dict[str, Tensor]:
    """Return ``target_box`` (b, 5), which the text refers to, and ``has_target`` bool (b,)."""
    del tokens, text_index
    targets, has = torch.zeros(len(drawn), 5), torch.zeros(len(drawn), dtype=torch.bool)
    for row, one in enumerate(drawn):
        boxes, target, _ = parse_boxes(one.key, one.media)
        if target is not None:
            targets[row], has[row] = boxes[target], True
    return {"target_box": targets, "has_target": has}
