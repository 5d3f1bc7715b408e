"""Media as inputs of a finished model: the kind of a file by its name, and the kind of a row by its own."""

from collections.abc import Sequence

from torch import Tensor

from unicl_cli.contracts import Sample
from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import MediaKind


def match_kind(path: str, kinds: Sequence[MediaKind]) -> MediaKind | None:
    """Return the kind whose suffix ends a path, the longest suffix first; None for an image or anything else."""
    name = path.lower()
    matches = [(len(suffix), kind) for kind in kinds for suffix in kind.suffixes if name.endswith(suffix)]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def named_kind(name: str, kinds: Sequence[MediaKind], model: str) -> MediaKind:
    """Return the kind of this name. UniclError if the model, whose name is ``model``, does not encode it."""
    found = next((kind for kind in kinds if kind.name == name), None)
    if found is None:
        known = ", ".join(kind.name for kind in kinds) or "images and texts alone"
        raise UniclError(f"model {model}: does not encode {name}", f"use a model with it; this one encodes {known}")
    return found


def read_media(kind: MediaKind, sample: Sample) -> Tensor:
    """Return a row's media of this kind as a tensor. UniclError with the row's key if it lacks or cannot use them."""
    if kind.name not in sample.media:
        raise UniclError(f"row '{sample.key}': has no {kind.name}", "choose rows by media_rows()")
    try:
        return kind.read(sample.media[kind.name])
    except UniclError as error:
        hint = "fix the file, or leave it out, and prepare the corpus again"
        raise UniclError(f"row '{sample.key}': {kind.name}: {error.message}", hint) from error
