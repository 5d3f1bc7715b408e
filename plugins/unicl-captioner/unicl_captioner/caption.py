"""Captions of images: a row for each, in order and in bounded memory."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from unicl_captioner.loss import Captioner
from unicl_captioner.search import Caption
from unicl_cli.api import (
    ImageInput,
    Loaded,
    UniclError,
    csv_cell,
    escape_control,
    format_error,
    load_model,
    read_batches,
    start_accelerator,
)

Row = Mapping[str, Any]
FIELDS = ("path", "caption", "log_prob", "words", "complete", "error")
DIGITS = 4


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
    loss: Any = loaded.step.loss
    device = next(loaded.step.parameters()).device
    for part in read_batches(images, loaded.transform, batch=batch, fetch=fetch):
        problems = part.problems(device)
        good = [row for row, problem in enumerate(problems) if problem is None]
        written: list[Caption] = []
        if good:
            written = loss.write(loaded.step.model, part.pixels[torch.tensor(good)].to(device), beams)
        if any(not math.isfinite(each.log_prob) for each in written):
            raise UniclError(f"non-finite features from {loaded.name}", "use an earlier checkpoint of the run")
        texts: list[str] = loaded.tokenizer.decode([each.words for each in written])  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue] - checked on loading
        found = dict(zip(good, zip(texts, written, strict=True), strict=True))
        yield [answer(image.path, problems[row], found.get(row)) for row, image in enumerate(part.images)]


def answer(path: str, problem: str | None, found: tuple[str, Caption] | None) -> Row:
    """Return the row of one image."""
    if found is None:
        return {"path": path, "caption": None, "log_prob": None, "words": None, "complete": None, "error": problem}
    text, each = found
    facts = {"log_prob": round(each.log_prob, DIGITS), "words": len(each.words), "complete": each.complete}
    return {"path": path, "caption": text, **facts, "error": None}


def text_lines(rows: Sequence[Row]) -> str:
    """Format rows as ``path<TAB>caption``, with … behind a caption that was cut."""
    lines = [
        format_error(row)
        if row["error"] is not None
        else f"{escape_control(row['path'])}\t{escape_control(row['caption'])}{'' if row['complete'] else ' …'}"
        for row in rows
    ]
    return "".join(f"{line}\n" for line in lines)


class CsvRows:
    """The CSV format: a header before the first rows."""

    def __init__(self) -> None:
        self.has_begun = False

    def __call__(self, rows: Sequence[Row]) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if not self.has_begun:
            writer.writerow(FIELDS)
        self.has_begun = True
        writer.writerows([csv_cell(row[field]) for field in FIELDS] for row in rows)
        return out.getvalue()
