"""Classification of the user's own images against the user's own classes: one row per image, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unicl_cli.core.dist import gather
from unicl_cli.core.guard import divergence_error
from unicl_cli.inference.image_batches import IMAGE, Reading, read_batches
from unicl_cli.inference.image_inputs import ImageInput

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.inference.scorer import Scorer
    from unicl_cli.jobs.zeroshot.answers import Judge
    from unicl_cli.jobs.zeroshot.label_sets import SetJudge


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
    for part in read_batches(images, loaded.transform, batch=batch, fetch=fetch, media=judge.scorer.media):
        scores = gather(score_readings(part.readings, judge.scorer))[: len(part.images)]
        problems = part.problems(scores.device)
        good = torch.tensor([problem is None for problem in problems], device=scores.device)
        if bool(judge.scorer.probabilities(scores)[good].isnan().any()):
            raise divergence_error(f"non-finite features from {loaded.name}")
        yield judge.rows(part.images, scores, problems)


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
