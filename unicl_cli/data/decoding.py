"""Encoded pictures to uint8 tensors: JPEGs by the fastest decoder whose pixels are Pillow's, all others by Pillow."""

import importlib.util
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from unicl_cli.data.pictures import decode, opened, orientation

JPEG = b"\xff\xd8\xff"
SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None


def pixels(data: bytes, decoder: str = "auto") -> Tensor:
    """uint8 (3, H, W) with the strides of (H, W, 3): bit for bit what `pictures.decode` gives, orientation applied.

    ``decoder`` is auto or pillow. Pillow judges every header, and whatever is no plain JPEG or is damaged goes to it
    whole: CMYK, cut files. PictureError as there.
    """
    if decoder == "auto" and data.startswith(JPEG):
        image = opened(data)
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            x = _jpeg(data)
            if x is not None:
                return _upright(x, orientation(image))
    return torch.from_numpy(np.array(decode(data))).permute(2, 0, 1)


def _jpeg(data: bytes) -> Tensor | None:
    """Pixels as stored, None for a damaged file. Both decoders are libjpeg-turbo with Pillow's settings."""
    try:
        if SIMPLEJPEG:
            import simplejpeg

            return torch.from_numpy(simplejpeg.decode_jpeg(data, colorspace="RGB")).permute(2, 0, 1)
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return cast("Tensor", decode_jpeg(encoded, mode=ImageReadMode.RGB))
    except (ValueError, RuntimeError):
        return None


def _upright(x: Tensor, turned: int) -> Tensor:
    """(3, H, W) as stored with EXIF orientation ``turned`` -> upright."""
    if turned >= 5:
        x = x.permute(2, 1, 0).contiguous().permute(2, 0, 1)
    mirrored = [dim for dim, of in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if turned in of]
    return x.flip(mirrored) if mirrored else x
