"""The stand-in for images that a frozen tower has encoded already, and the mark of hooks that read no images."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from unicl_cli.errors import UniclError

H = TypeVar("H", bound=Callable[..., Any])


class PixelsNeeded(UniclError, AttributeError):  # noqa: N818 - the image cache is off where a probe meets it
    """Code other than ``encode_image`` uses the images of a batch that holds only the image tower's outputs.

    It is an AttributeError too, so that ``hasattr`` says False.
    """


class EncodedImages:
    """Stands for the images of a batch: (b, …) ``outputs`` of a frozen image tower, which ``encode_image`` finishes.

    Any other use than its length and a move to a device raises PixelsNeeded or TypeError, so that no loss computes with
    numbers that are not pixels.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs

    def __len__(self) -> int:
        return len(self.outputs)

    def to(self, device: Any, *, non_blocking: bool = False) -> "EncodedImages":
        """Return the stand-in with its outputs on ``device``."""
        if isinstance(device, torch.dtype):
            refuse_pixels("to")
        return EncodedImages(self.outputs.to(device, non_blocking=non_blocking))

    def __getattr__(self, name: str) -> NoReturn:
        refuse_pixels(name)

    def __eq__(self, other: object) -> bool:  # otherwise `images == 0` would be False
        refuse_pixels("==")

    __hash__ = None  # pyright: ignore[reportAssignmentType] - as of any class with ``__eq__``

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        refuse_pixels(getattr(func, "__name__", str(func)))


def refuse_pixels(name: str) -> NoReturn:
    """Raise the error for the use ``name`` of images that have no pixels."""
    raise PixelsNeeded(
        f"parallel.image_cache: the images of the batch are encoded already, and '{name}' needs their pixels",
        "set parallel.image_cache=off",
    )


def reads_no_images(hook: H) -> H:
    """Declare that an ``extra`` hook does not read ``Drawn.image``: it gets None there, and images may be cached.

    Sets the attribute ``reads_images`` to False, which a `partial` of the function passes on.
    """
    cast("Any", hook).reads_images = False
    return hook
