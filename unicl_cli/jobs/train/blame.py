"""Explanation of a failure in the first step by the part of the recipe in which it happened."""

import contextlib
import traceback
from collections.abc import Generator

from torch import nn

from unicl_cli.build.param_groups import KEY
from unicl_cli.core.memory import is_out_of_memory
from unicl_cli.errors import UniclError

OWN = "unicl_cli."


@contextlib.contextmanager
def blame_parts() -> Generator[None]:
    """Turn an exception from one of unicl's own towers into a UniclError at the tower's key.

    Their options may be valid one by one and still make no tower that takes a batch: an image tower for texts, a
    backbone without pooling. A plugin's tower keeps its traceback, for its author.
    """
    try:
        yield
    except UniclError:
        raise
    except Exception as error:
        key = key_of(error)
        if key is None or is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UniclError(
            f"{key}: fails on the first batch: {type(error).__name__}: {reason}",
            "use another part or other options there; unicl --debug train … shows the place",
        ) from error


def key_of(error: Exception) -> str | None:
    """Return the key of the innermost of unicl's own towers through which an exception came; None if there is none.

    The projection of a tower counts as the tower: it fails where the tower's output has another shape.
    """
    found: str | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and type(module).__module__.startswith(OWN):
            keys = {str(getattr(each, KEY)) for each in (module, *module.children()) if hasattr(each, KEY)}
            if len(keys) == 1:
                (found,) = keys
    return found
