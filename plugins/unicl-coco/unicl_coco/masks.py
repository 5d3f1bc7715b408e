"""Masks of COCO's segmentations, drawn by COCO's own rules."""

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from unicl_cli.api import UniclError, mask_of_runs


def mask_of(segmentation: Any, height: int, width: int, place: str) -> NDArray[np.uint8]:
    """Return the mask (height, width) of a checked segmentation, 0 and 1; ``place`` names it in an error."""
    if isinstance(segmentation, list):
        polygons = [list(map(float, polygon)) for polygon in segmentation if len(polygon) >= 6]
        parts: Any = coco_mask.frPyObjects(polygons, height, width)
        return coco_mask.decode(coco_mask.merge(parts))
    try:
        return mask_of_runs(segmentation, height, width)
    except ValueError as error:
        raise UniclError(f"{place}: {error}", "correct the segmentation") from error


def pack_mask(mask: Any) -> dict[str, Any]:
    """Return the packed run lengths of a mask (height, width), as JSON can hold them."""
    packed = coco_mask.encode(np.asfortranarray(mask))
    counts = packed["counts"]
    return {"size": list(mask.shape), "counts": counts.decode() if isinstance(counts, bytes) else counts}
