"""Images of the user's own scored against classes of the user's own, one row each, in the order given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.core.dist import bare, gather, rank, world_size
from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.metrics import best
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.scorer import Scorer, make_scorer
from unicl_cli.jobs.zeroshot.classes import Classes
from unicl_cli.jobs.zeroshot.inputs import Picture, read
from unicl_cli.jobs.zeroshot.stream import Arrivals

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded

BACKGROUND = ("a photo.", "something", "an object")
"""Prompts of no class in particular: the column that "none of these" and independent classes are measured against."""
PATIENCE = 0.05
REASON_BYTES = 240


class Wanted(NamedTuple):
    """How to answer: ``none`` may win, each class for itself, below ``threshold`` no label; by cosine, else by prob."""

    top_k: int = 5
    none: bool = False
    independent: bool = False
    threshold: float | None = None
    by_cosine: bool = False


class Judge(NamedTuple):
    """Scores into rows; a column of the scorer behind those of the names is the background."""

    scorer: Scorer
    names: Sequence[str]
    wanted: Wanted
    warnings: tuple[str, ...] = ()

    def probabilities(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """(n, C or C + 1) -> (n, C), and (n,) of "none of these" where that is asked for."""
        if self.wanted.independent and not self.scorer.sigmoid:
            logits = self.scorer.logits(scores)
            p = (logits - logits[:, -1:]).sigmoid()
        else:
            p = self.scorer.probabilities(scores)
        return p[:, : len(self.names)], p[:, -1] if self.wanted.none else None

    def rows(self, pictures: Sequence[Picture], scores: Tensor, problems: Sequence[str | None]) -> list[dict[str, Any]]:
        """(n, C or C + 1), why an image has no answer -> ``{"path", "label", "prob", "top", "error"}`` each."""
        found, none = self.probabilities(scores)
        found, cosines = found.cpu(), scores[:, : len(self.names)].cpu()
        values, order = best(cosines, self.wanted.top_k)
        rows: list[dict[str, Any]] = []
        for row, (picture, problem) in enumerate(zip(pictures, problems, strict=True)):
            if problem is not None:
                rows.append({"path": picture.path, "label": None, "prob": None, "top": [], "error": problem})
                continue
            top = [
                {
                    "label": self.names[label],
                    "prob": round(float(found[row, label]), 6),
                    "cosine": round(value, 6) if self.scorer.cosines else None,
                }
                for label, value in zip(order[row].tolist(), values[row].tolist(), strict=True)
            ]
            answer = {"path": picture.path, "label": top[0]["label"], "prob": top[0]["prob"], "top": top, "error": None}
            rows.append(self.doubted(answer, None if none is None else round(float(none[row]), 6)))
        return rows

    def doubted(self, row: dict[str, Any], none: float | None) -> dict[str, Any]:
        """Without its label where "none" is likelier or the best class is below the threshold."""
        first = row["top"][0]
        if none is not None:
            row |= {"label": None, "prob": none} if none > first["prob"] else {}
            row["none"] = none
        if self.wanted.threshold is not None:
            value = first["cosine"] if self.wanted.by_cosine else first["prob"]
            row |= {"label": None} if value < self.wanted.threshold else {}
        return row


def judge_for(loaded: Loaded, classes: Classes | None, wanted: Wanted, accelerator: Any) -> Judge:
    """What scores images against these classes, or against the model's own."""
    if classes is None and not loaded.classes:
        raise UniclError(f"model {loaded.name} has no classes of its own", "name some: --classes cat,dog")
    asked = (
        Classes(tuple(each._replace(names=each.names[:1]) for each in loaded.classes)) if classes is None else classes
    )
    encoder = Encoder(loaded, accelerator.autocast)
    columns, prompts = list(asked.names), asked.filled(loaded.templates)
    loss: Any = bare(loaded.step).loss
    background = wanted.none or (wanted.independent and loss.activation != "sigmoid")
    if background and loss.score == "head":
        raise UniclError(
            f"model {loaded.name} scores by a classifier of its own classes: it cannot say what is none of them",
            "leave --none and --independent out; --threshold works",
        )
    if background:
        columns.append(ClassName("\0none", ("none of these",)))
        prompts.append(list(BACKGROUND))
    scorer = make_scorer(encoder, columns, prompts=prompts)
    if wanted.by_cosine and not scorer.cosines:
        raise UniclError(f"model {loaded.name} has no cosines", "leave --scores cosine out")
    warnings = [*asked.warnings, *scorer.warnings]
    if wanted.threshold is not None:
        warnings.append(f"--threshold {wanted.threshold:g} is uncalibrated: what it means differs from model to model")
    return Judge(scorer, [each.names[0] for each in asked.names], wanted, tuple(warnings))


def blocks(n: int, batch: int) -> list[range]:
    """Places that all ranks work on together, at most ``batch`` each."""
    size = batch * world_size()
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def my_part(block: range) -> list[int]:
    """This rank's places of a block; every rank has as many, the last one repeated."""
    each = -(-len(block) // world_size())
    return [min(block.start + rank() * each + place, block.stop - 1) for place in range(each)]


def batches(
    pictures: Iterable[Picture], work: Callable[[Picture], Tensor | str], batch: int, threads: int
) -> Iterator[tuple[list[Picture], list[Tensor | str]]]:
    """The images that all ranks answer together, and this rank's part of them, read.

    A process alone takes them as they come in; several need the whole list first.
    """
    if world_size() == 1:
        for part in Arrivals(pictures, work, batch, patience=PATIENCE, threads=threads):
            yield [picture for picture, _ in part], [item for _, item in part]
        return
    listed = list(pictures)
    plan = blocks(len(listed), batch)
    mine = (listed[place] for block in plan for place in my_part(block))
    for block, part in zip(plan, Arrivals(mine, work, batch, patience=None, threads=threads), strict=True):
        yield [listed[place] for place in block], [item for _, item in part]


def zeroshot(
    loaded: Loaded,
    pictures: Iterable[Picture],
    judge: Judge,
    *,
    batch: int,
    fetch: Callable[[str], bytes] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Rows for each batch of images, on every rank the same, in bounded memory: see ``Judge.rows``.

    An image that cannot be read has ``error`` and no label. Probabilities are relative to these classes.
    """
    blank = torch.zeros(3, *loaded.transform.size, dtype=torch.uint8)
    threads = 16 if fetch is not None else max(1, min(8, cores() // world_size()))

    def work(picture: Picture) -> Tensor | str:
        return read(picture, loaded.transform, fetch)

    for block, part in batches(pictures, work, batch, threads):
        scores = judge.scorer.scores(torch.stack([item if isinstance(item, Tensor) else blank for item in part]))
        scores = gather(scores)[: len(block)]
        problems = shared(part, scores.device)[: len(block)]
        good = torch.tensor([problem is None for problem in problems], device=scores.device)
        if bool(judge.scorer.probabilities(scores)[good].isnan().any()):
            raise UniclError(f"non-finite features from {loaded.name}", "the weights have diverged", exit_code=1)
        yield judge.rows(block, scores, problems)


def shared(part: Sequence[Tensor | str], device: torch.device) -> list[str | None]:
    """Why images could not be read, of this rank's part -> of all ranks' parts; None for those that could."""
    told = torch.zeros(len(part), REASON_BYTES, dtype=torch.uint8)
    for row, item in enumerate(part):
        if isinstance(item, str):
            text = (item or "cannot be read").encode(errors="replace")[:REASON_BYTES]
            told[row, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = gather(told.to(device)).cpu()
    return [bytes(row[row > 0].tolist()).decode(errors="ignore") or None for row in rows]
