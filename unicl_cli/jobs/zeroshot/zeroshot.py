"""Classification of the user's own images against the user's own classes: one row per image, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.core.dist import gather, rank, world_size
from unicl_cli.core.guard import divergence_error
from unicl_cli.core.machine import cores
from unicl_cli.inference.media import match_kind
from unicl_cli.jobs.zeroshot.inputs import ImageInput, read_image
from unicl_cli.jobs.zeroshot.stream import BatchStream

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.inference.scorer import Scorer
    from unicl_cli.jobs.zeroshot.answers import Judge
    from unicl_cli.jobs.zeroshot.label_sets import SetJudge

PATIENCE = 0.05
REASON_BYTES = 240
IMAGE = "image"


class Reading(NamedTuple):
    """An input that was read: IMAGE and uint8 (3, H, W), or the name of its `MediaKind` and its tensor."""

    kind: str
    x: Tensor


def split_blocks(n: int, batch: int) -> list[range]:
    """Split n places into blocks that all ranks work on together, at most ``batch`` places per rank."""
    size = batch * world_size()
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def places_of_rank(block: range) -> list[int]:
    """Return this rank's places of a block: an equal number on every rank, the last place repeated."""
    each = -(-len(block) // world_size())
    return [min(block.start + rank() * each + place, block.stop - 1) for place in range(each)]


def read_batches(
    images: Iterable[ImageInput], work: Callable[[ImageInput], Reading | str], batch: int, threads: int
) -> Iterator[tuple[list[ImageInput], list[Reading | str]]]:
    """Yield the images that all ranks answer together, and this rank's share of them, read.

    A single process takes them as they come in; several need the whole list first.
    """
    if world_size() == 1:
        for part in BatchStream(images, work, batch, patience=PATIENCE, threads=threads):
            yield [image for image, _ in part], [item for _, item in part]
        return
    listed = list(images)
    plan = split_blocks(len(listed), batch)
    mine = (listed[place] for block in plan for place in places_of_rank(block))
    for block, part in zip(plan, BatchStream(mine, work, batch, patience=None, threads=threads), strict=True):
        yield [listed[place] for place in block], [item for _, item in part]


def zeroshot(
    loaded: Loaded,
    images: Iterable[ImageInput],
    judge: Judge | SetJudge,
    *,
    batch: int,
    fetch: Callable[[str], bytes] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each batch of images, the same on every rank, in bounded memory: see ``Judge.rows``.

    An image that cannot be read has ``error`` and no label. Probabilities are relative to these classes. A file whose
    name is that of a kind of media which the scorer encodes is read as such, and any other as an image.
    """
    blank = torch.zeros(3, *loaded.transform.size, dtype=torch.uint8)
    threads = 16 if fetch is not None else max(1, min(8, cores() // world_size()))

    def work(image: ImageInput) -> Reading | str:
        kind = match_kind(image.path, judge.scorer.media)
        found = read_image(image, loaded.transform if kind is None else kind.read, fetch)
        return found if isinstance(found, str) else Reading(IMAGE if kind is None else kind.name, found)

    for block, part in read_batches(images, work, batch, threads):
        readings = [Reading(IMAGE, blank) if isinstance(item, str) else item for item in part]
        scores = gather(score_readings(readings, judge.scorer))[: len(block)]
        problems = share_problems(part, scores.device)[: len(block)]
        good = torch.tensor([problem is None for problem in problems], device=scores.device)
        if bool(judge.scorer.probabilities(scores)[good].isnan().any()):
            raise divergence_error(f"non-finite features from {loaded.name}")
        yield judge.rows(block, scores, problems)


def score_readings(readings: Sequence[Reading], scorer: Scorer) -> Tensor:
    """Score all classes for each input, float32 (b, C); inputs of one kind are encoded together."""
    places: dict[str, list[int]] = {}
    for place, reading in enumerate(readings):
        places.setdefault(reading.kind, []).append(place)
    parts: list[Tensor] = []
    for kind, of_kind in places.items():
        x = torch.stack([readings[place].x for place in of_kind])
        parts.append(scorer.scores(x) if kind == IMAGE else scorer.media_scores(kind, x))
    order = torch.tensor([place for of_kind in places.values() for place in of_kind])
    return torch.cat(parts)[order.argsort().to(parts[0].device)]


def share_problems(part: Sequence[Reading | str], device: torch.device) -> list[str | None]:
    """Gather the problems of all ranks from the items of this rank's part; None for an image that was read."""
    told = torch.zeros(len(part), REASON_BYTES, dtype=torch.uint8)
    for row, item in enumerate(part):
        if isinstance(item, str):
            text = (item or "cannot be read").encode(errors="replace")[:REASON_BYTES]
            told[row, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = gather(told.to(device)).cpu()
    return [bytes(row[row > 0].tolist()).decode(errors="ignore") or None for row in rows]
