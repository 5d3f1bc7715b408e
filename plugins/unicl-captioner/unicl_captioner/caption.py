"""Captions of images: a row for each, in order and in bounded memory."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from unicl_captioner.loss import Captioner
from unicl_captioner.search import Caption
from unicl_cli.api import (
    ImageInput,
    Loaded,
    UniclError,
    answer_images,
    escape_control,
    format_error,
    load_model,
    start_accelerator,
)

Row = Mapping[str, Any]
FIELDS = ("caption", "log_prob", "words", "complete")
"""The fields of a row between its ``path`` and its ``error``."""


def load_captioner(model: str | None, *, raw_weights: bool) -> Loaded:
    """Load a model onto the device of this process; UniclError if it writes no captions."""
    loaded = load_model(model, device=start_accelerator().device, raw_weights=raw_weights)
    if not isinstance(loaded.step.loss, Captioner):
        raise UniclError(
            f"model {loaded.name} writes no captions: its loss is not captioner",
            "train one that does: unicl train captioner-shapes",
        )
    if not hasattr(loaded.tokenizer, "decode"):
        raise UniclError(f"model {loaded.name}: its tokenizer cannot turn tokens into words", "use another tokenizer")
    return loaded


def caption_images(
    loaded: Loaded,
    images: Iterable[ImageInput],
    *,
    beams: int,
    batch: int,
    fetch: Callable[[str], bytes] | None = None,
) -> Iterator[list[Row]]:
    """Yield the rows of each batch: ``{"path", "caption", "log_prob", "words", "complete", "error"}``.

    ``log_prob`` is log p(caption | image), ``words`` the number of tokens before the end, ``complete`` false for a
    caption that was cut at the longest text of the model. An image that cannot be read has ``error`` alone.
    """
    loss, tokenizer = cast("Any", loaded.step.loss), cast("Any", loaded.tokenizer)

    def write(pixels: Tensor) -> list[Row]:
        written: list[Caption] = loss.write(loaded.step.model, pixels, beams)
        if any(not math.isfinite(each.log_prob) for each in written):
            raise UniclError(f"non-finite features from {loaded.name}", "use an earlier checkpoint of the run")
        texts: list[str] = tokenizer.decode([each.words for each in written])
        return [
            {"caption": text, "log_prob": round(one.log_prob, 4), "words": len(one.words), "complete": one.complete}
            for text, one in zip(texts, written, strict=True)
        ]

    device = next(loaded.step.parameters()).device
    return answer_images(images, loaded.transform, write, FIELDS, batch=batch, device=device, fetch=fetch)


def text_lines(rows: Sequence[Row]) -> str:
    """Format rows as ``path<TAB>caption``, with … behind a caption that was cut."""
    lines = [
        format_error(row)
        if row["error"] is not None
        else f"{escape_control(row['path'])}\t{escape_control(row['caption'])}{'' if row['complete'] else ' …'}"
        for row in rows
    ]
    return "".join(f"{line}\n" for line in lines)
