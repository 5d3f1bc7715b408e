"""Batches of the user's own images, read ahead and shared by all ranks, with the problems of unreadable ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.core.dist import gather, rank, world_size
from unicl_cli.core.machine import cores
from unicl_cli.data.transforms import EvalTransform
from unicl_cli.evaluator_contracts import MediaKind
from unicl_cli.inference.batch_stream import BatchStream
from unicl_cli.inference.image_inputs import ImageInput, read_image
from unicl_cli.inference.media import match_kind

PATIENCE = 0.05
REASON_BYTES = 240


IMAGE = "image"


class Reading(NamedTuple):
    """An input that was read: IMAGE and uint8 (3, H, W), or the name of its `MediaKind` and its tensor."""

    kind: str
    x: Tensor


class ImageBatch(NamedTuple):
    """Images that all ranks answer together, and this rank's part of them.

    ``readings`` are a black image where one could not be read, equally many on all ranks: results for them, gathered
    over ranks and cut to ``len(images)``, are in the order of ``images``. ``part`` has the problems.
    """

    images: list[ImageInput]
    readings: list[Reading]
    part: list[str | None]

    @property
    def pixels(self) -> Tensor:
        """The images of the part, uint8 (b, 3, H, W); no input may be of another kind."""
        return torch.stack([reading.x for reading in self.readings])

    def problems(self, device: torch.device) -> list[str | None]:
        """Gather the problem of each of ``images``, None for one that was read; every rank calls it."""
        return share_problems(self.part, device)[: len(self.images)]


def split_blocks(n: int, batch: int) -> list[range]:
    """Split n places into blocks that all ranks work on together, at most ``batch`` places per rank."""
    size = batch * world_size()
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def places_of_rank(block: range) -> list[int]:
    """Return this rank's places of a block: an equal number on every rank, the last place repeated."""
    each = -(-len(block) // world_size())
    return [min(block.start + rank() * each + place, block.stop - 1) for place in range(each)]


def read_batches(
    images: Iterable[ImageInput],
    transform: EvalTransform,
    *,
    batch: int,
    fetch: Callable[[str], bytes] | None = None,
    media: Sequence[MediaKind] = (),
) -> Iterator[ImageBatch]:
    """Yield the images in batches of at most ``batch`` for each rank, in order and in bounded memory.

    A single process takes them as they come in; several need the whole list first. ``fetch`` None refuses URLs. A file
    whose name is that of a kind of ``media`` is read as such, and any other as an image.
    """
    blank = Reading(IMAGE, torch.zeros(3, *transform.size, dtype=torch.uint8))
    threads = 16 if fetch is not None else max(1, min(8, cores() // world_size()))

    def work(image: ImageInput) -> Reading | str:
        kind = match_kind(image.path, media)
        found = read_image(image, transform if kind is None else kind.read, fetch)
        return found if isinstance(found, str) else Reading(IMAGE if kind is None else kind.name, found)

    for block, part in read_parts(images, work, batch, threads):
        readings = [blank if isinstance(item, str) else item for item in part]
        yield ImageBatch(block, readings, [item if isinstance(item, str) else None for item in part])


def read_parts(
    images: Iterable[ImageInput], work: Callable[[ImageInput], Reading | str], batch: int, threads: int
) -> Iterator[tuple[list[ImageInput], list[Reading | str]]]:
    """Yield the images that all ranks answer together, and this rank's share of them, read."""
    if world_size() == 1:
        for part in BatchStream(images, work, batch, patience=PATIENCE, threads=threads):
            yield [image for image, _ in part], [item for _, item in part]
        return
    listed = list(images)
    plan = split_blocks(len(listed), batch)
    mine = (listed[place] for block in plan for place in places_of_rank(block))
    for block, part in zip(plan, BatchStream(mine, work, batch, patience=None, threads=threads), strict=True):
        yield [listed[place] for place in block], [item for _, item in part]


def answer_images(
    images: Iterable[ImageInput],
    transform: EvalTransform,
    answer: Callable[[Tensor], Sequence[Mapping[str, Any]]],
    fields: Sequence[str],
    *,
    batch: int,
    device: torch.device,
    fetch: Callable[[str], bytes] | None = None,
) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the rows of each batch of images, for `write_answers`: ``path``, the ``fields``, ``error``.

    ``answer`` maps uint8 (b, 3, H, W) on the device to the fields of each row. An image that cannot be read has its
    ``error`` and nulls.
    """
    for part in read_batches(images, transform, batch=batch, fetch=fetch):
        problems = part.problems(device)
        good = [row for row, problem in enumerate(problems) if problem is None]
        results = answer(part.pixels[torch.tensor(good)].to(device)) if good else ()
        found = dict(zip(good, results, strict=True))
        blank = dict.fromkeys(fields)
        rows = zip(part.images, problems, strict=True)
        yield [
            {"path": image.path, **found.get(row, blank), "error": problem} for row, (image, problem) in enumerate(rows)
        ]


def share_problems(part: Sequence[str | None], device: torch.device) -> list[str | None]:
    """Gather the problems of all ranks from those of this rank's part; None for an image that was read."""
    reasons = torch.zeros(len(part), REASON_BYTES, dtype=torch.uint8)
    for row, item in enumerate(part):
        if item is not None:
            text = (item or "cannot be read").encode(errors="replace")[:REASON_BYTES]
            reasons[row, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = gather(reasons.to(device)).cpu()
    return [bytes(row[row > 0].tolist()).decode(errors="ignore") or None for row in rows]
