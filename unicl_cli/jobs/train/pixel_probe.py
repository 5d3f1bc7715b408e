"""The probe of a step whose image tower is frozen: whether anything but the tower uses pixels."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unicl_cli.contracts import Batch
from unicl_cli.core.dist import bare
from unicl_cli.core.image_cache import EncodedImages
from unicl_cli.core.loop import Step, probe_gradients
from unicl_cli.core.memory import is_out_of_memory
from unicl_cli.errors import UniclError


class FrozenImages(NamedTuple):
    """A frozen image tower: the bytes of what it gives for an image, and another use of pixels in a step, if any."""

    row_bytes: int
    other_use: str | None


def encode_frozen(module: nn.Module, images: Tensor, accelerator: Any) -> Tensor | None:
    """Encode uint8 (b, 3, H, W) as far as the frozen image tower goes; None if it learns."""
    pixels = images.to(accelerator.device, non_blocking=True)
    with torch.no_grad(), accelerator.autocast():
        return cast("Tensor | None", cast("Step", bare(module)).call("encode_frozen", pixels))


def probe_pixels(module: nn.Module, batch: Batch, accelerator: Any) -> FrozenImages | None:
    """Try a step without pixels on a ``batch`` that has had one with pixels; None unless the image tower is frozen."""
    if not hasattr(cast("Step", bare(module)).model, "encode_frozen"):
        return None
    images = batch.images.flatten(0, -4)  # views, if there are several
    one = encode_frozen(module, images[:1], accelerator)
    if one is None:
        return None
    standing = EncodedImages(one.expand(len(images), *one.shape[1:]))
    other_use = None
    try:
        probe_gradients(module, batch._replace(images=cast("Any", standing)), accelerator)
    except Exception as error:  # whatever it is: the same step with pixels has just gone well
        if is_out_of_memory(error):
            raise
        other_use = str(error) if isinstance(error, UniclError) else f"{type(error).__name__}: {error}"
    return FrozenImages(one.nbytes, other_use)
