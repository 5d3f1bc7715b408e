"""Classification of the user's own images against the user's own classes: one row per image, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.core.dist import bare, gather, rank, world_size
from unicl_cli.core.guard import divergence_error
from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.metrics import best_classes
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.linear_probe import LinearProbe, make_probe_scorer
from unicl_cli.inference.scorer import Scorer, make_scorer
from unicl_cli.jobs.zeroshot.classes import Classes
from unicl_cli.jobs.zeroshot.inputs import ImageInput, read_image
from unicl_cli.jobs.zeroshot.stream import BatchStream

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded

BACKGROUND = ("a photo.", "something", "an object")
"""Prompts without a class: the column that "none of these" and independent classes are compared with."""
PATIENCE = 0.05
REASON_BYTES = 240


class AnswerOptions(NamedTuple):
    """Options of an answer: ``none`` may win, classes may be ``independent``, no label below ``threshold``."""

    top_k: int = 5
    none: bool = False
    independent: bool = False
    threshold: float | None = None
    by_cosine: bool = False


class Judge(NamedTuple):
    """Turns scores into rows; a column of the scorer after those of the names is the background."""

    scorer: Scorer
    names: Sequence[str]
    options: AnswerOptions
    warnings: tuple[str, ...] = ()

    def probabilities(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn scores (n, C or C + 1) into probabilities (n, C), and (n,) of "none of these" if asked for."""
        if self.options.independent and not self.scorer.sigmoid:
            logits = self.scorer.logits(scores)
            p = (logits - logits[:, -1:]).sigmoid()
        else:
            p = self.scorer.probabilities(scores)
        return p[:, : len(self.names)], p[:, -1] if self.options.none else None

    def rows(
        self, images: Sequence[ImageInput], scores: Tensor, problems: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        """Turn scores (n, C or C + 1) and problems into rows ``{"path", "label", "prob", "top", "error"}``."""
        found, none = self.probabilities(scores)
        found, cosines = found.cpu(), scores[:, : len(self.names)].cpu()
        values, order = best_classes(cosines, self.options.top_k)
        rows: list[dict[str, Any]] = []
        for row, (image, problem) in enumerate(zip(images, problems, strict=True)):
            if problem is not None:
                rows.append({"path": image.path, "label": None, "prob": None, "top": [], "error": problem})
                continue
            top = [
                {
                    "label": self.names[label],
                    "prob": round(float(found[row, label]), 6),
                    "cosine": round(value, 6) if self.scorer.cosines else None,
                }
                for label, value in zip(order[row].tolist(), values[row].tolist(), strict=True)
            ]
            answer = {"path": image.path, "label": top[0]["label"], "prob": top[0]["prob"], "top": top, "error": None}
            rows.append(self.withhold_label(answer, None if none is None else round(float(none[row]), 6)))
        return rows

    def withhold_label(self, row: dict[str, Any], none: float | None) -> dict[str, Any]:
        """Remove the label if "none" is likelier or the best class is below the threshold."""
        first = row["top"][0]
        if none is not None:
            row |= {"label": None, "prob": none} if none > first["prob"] else {}
            row["none"] = none
        if self.options.threshold is not None:
            value = first["cosine"] if self.options.by_cosine else first["prob"]
            row |= {"label": None} if value < self.options.threshold else {}
        return row


def make_judge(
    loaded: Loaded, classes: Classes | LinearProbe | None, options: AnswerOptions, accelerator: Any
) -> Judge:
    """Return what scores images against these classes, by this probe, or against the model's own classes."""
    if isinstance(classes, LinearProbe):
        return make_probe_judge(loaded, classes, options, accelerator)
    if classes is None and not loaded.classes:
        raise UniclError(f"model {loaded.name} has no classes of its own", "name classes: --classes cat,dog")
    asked = (
        Classes(tuple(each._replace(names=each.names[:1]) for each in loaded.classes)) if classes is None else classes
    )
    encoder = Encoder(loaded, accelerator.autocast)
    columns, prompts = list(asked.names), asked.fill_prompts(loaded.templates)
    loss: Any = bare(loaded.step).loss
    background = options.none or (options.independent and loss.activation != "sigmoid")
    if background and loss.score == "head":
        raise UniclError(
            f"model {loaded.name} scores by a classifier of its own classes, which has no 'none of these'",
            "remove --none and --independent; --threshold works",
        )
    if background:
        columns.append(ClassName("\0none", ("none of these",)))
        prompts.append(list(BACKGROUND))
    scorer = make_scorer(encoder, columns, prompts=prompts)
    if options.by_cosine and not scorer.cosines:
        raise UniclError(f"model {loaded.name} does not score by cosines", "remove --scores cosine")
    warnings = [*asked.warnings, *scorer.warnings]
    is_relative = not (options.by_cosine or options.independent or scorer.sigmoid)
    if is_relative and len(scorer.first[scorer.known].unique()) == 1:
        warnings.append("one class: its probability is always 100 %; name others, or add --none or --scores cosine")
    if options.threshold is not None:
        warnings.append(f"--threshold {options.threshold:g} is uncalibrated: it means something else for another model")
    return Judge(scorer, [each.names[0] for each in asked.names], options, tuple(warnings))


def make_probe_judge(loaded: Loaded, probe: LinearProbe, options: AnswerOptions, accelerator: Any) -> Judge:
    """Return what scores images by a saved probe. Raises UniclError if the probe was fitted on another model."""
    scorer = make_probe_scorer(Encoder(loaded, accelerator.autocast), probe)
    return Judge(scorer, [each.names[0] for each in probe.classes], options)


def split_blocks(n: int, batch: int) -> list[range]:
    """Split n places into blocks that all ranks work on together, at most ``batch`` places per rank."""
    size = batch * world_size()
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def places_of_rank(block: range) -> list[int]:
    """Return this rank's places of a block: an equal number on every rank, the last place repeated."""
    each = -(-len(block) // world_size())
    return [min(block.start + rank() * each + place, block.stop - 1) for place in range(each)]


def read_batches(
    images: Iterable[ImageInput], work: Callable[[ImageInput], Tensor | str], batch: int, threads: int
) -> Iterator[tuple[list[ImageInput], list[Tensor | str]]]:
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
    judge: Judge,
    *,
    batch: int,
    fetch: Callable[[str], bytes] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each batch of images, the same on every rank, in bounded memory: see ``Judge.rows``.

    An image that cannot be read has ``error`` and no label. Probabilities are relative to these classes.
    """
    blank = torch.zeros(3, *loaded.transform.size, dtype=torch.uint8)
    threads = 16 if fetch is not None else max(1, min(8, cores() // world_size()))

    def work(image: ImageInput) -> Tensor | str:
        return read_image(image, loaded.transform, fetch)

    for block, part in read_batches(images, work, batch, threads):
        scores = judge.scorer.scores(torch.stack([item if isinstance(item, Tensor) else blank for item in part]))
        scores = gather(scores)[: len(block)]
        problems = share_problems(part, scores.device)[: len(block)]
        good = torch.tensor([problem is None for problem in problems], device=scores.device)
        if bool(judge.scorer.probabilities(scores)[good].isnan().any()):
            raise divergence_error(f"non-finite features from {loaded.name}")
        yield judge.rows(block, scores, problems)


def share_problems(part: Sequence[Tensor | str], device: torch.device) -> list[str | None]:
    """Gather the problems of all ranks from the items of this rank's part; None for an image that was read."""
    told = torch.zeros(len(part), REASON_BYTES, dtype=torch.uint8)
    for row, item in enumerate(part):
        if isinstance(item, str):
            text = (item or "cannot be read").encode(errors="replace")[:REASON_BYTES]
            told[row, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = gather(told.to(device)).cpu()
    return [bytes(row[row > 0].tolist()).decode(errors="ignore") or None for row in rows]
