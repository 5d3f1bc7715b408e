"""Rows and texts in, what a loaded model makes of them out: decoded ahead, an equal share for each rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import Features
from unicl_cli.core.dist import bare, gather, rank, world_size
from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError
from unicl_cli.inference.progress import progress

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.data.corpus import Table

P = TypeVar("P")
R = TypeVar("R")
NO_COST: Callable[[], AbstractContextManager[Any]] = nullcontext


class Encoder(NamedTuple):
    """A loaded model as evaluation calls it: without gradient, inputs moved to its device, in ``precision()``."""

    loaded: Loaded
    precision: Callable[[], AbstractContextManager[Any]] = NO_COST

    @property
    def device(self) -> torch.device:
        return next(self.loaded.step.parameters()).device

    @property
    def unit(self) -> bool:
        """Are scores cosines? Not where text vectors are the rows of a linear classifier, with or without bias."""
        model = bare(self.loaded.step).model
        return bool(getattr(model, "normalize", True)) and not getattr(model, "biased", False)

    def call(self, name: str, *inputs: Tensor) -> Any:
        """A method of the model; every rank calls equally often, or FSDP2 hangs. Not under inference_mode, which would
        break the training that goes on after a validation."""
        step: Any = bare(self.loaded.step)
        with torch.no_grad(), self.precision():
            return step.call(name, *(x.to(self.device, non_blocking=True) for x in inputs))

    def image(self, images: Tensor) -> Features:
        """uint8 (b, 3, H, W) -> features in float32, ``embed`` normalised where scores are cosines."""
        return self.wide(self.call("encode_image", images))

    def text(self, tokens: Tensor) -> Tensor:
        """int64 (n, L) -> float32 (n, D)."""
        return self.wide(self.call("encode_text", tokens)).embed

    def wide(self, features: Features) -> Features:
        embed = features.embed.float()
        return Features(features.pooled.float(), F.normalize(embed, dim=1) if self.unit else embed)


def my_share(n: int) -> list[int]:
    """Which of n rows this rank works on; every rank as many, the last ones repeated. Gathered and cut to n they are in
    order again."""
    each = -(-n // world_size())
    return [min(row, n - 1) for row in range(rank() * each, (rank() + 1) * each)]


def ahead(payloads: Iterable[P], work: Callable[[P], R], batch: int) -> Iterator[list[R]]:
    """``work`` on each payload, in order, a batch at a time; threads are at the next batch while one is in use."""
    threads = max(1, min(8, cores() // world_size()))
    waiting = iter(payloads)
    with ThreadPoolExecutor(threads) as pool:

        def submit() -> list[Future[R]]:
            return [pool.submit(work, payload) for payload in islice(waiting, batch)]

        current = submit()
        while current:
            following = submit()
            yield [future.result() for future in current]
            current = following


def each_row(
    table: Table,
    rows: Sequence[int],
    compute: Callable[[Tensor, Tensor], Tensor],
    *,
    transform: Callable[[bytes], Tensor],
    batch: int,
    label: str,
) -> Tensor:
    """``compute``: uint8 (b, 3, H, W) that ``transform`` made, int64 (b,) places in ``rows`` -> (b, …). Its results for
    all ``rows`` in their order, on the CPU of every rank. ``rows`` is not empty."""
    mine = my_share(len(rows))
    parts: list[Tensor] = []
    pictures = ahead((table.read(rows[place]).image for place in mine), transform, batch)
    with progress(label, len(rows)) as advance:
        for start, part in zip(range(0, len(mine), batch), pictures, strict=True):
            parts.append(compute(torch.stack(part), torch.tensor(mine[start : start + batch])))
            advance(min(len(part) * world_size(), len(rows)))
    return gather(torch.cat(parts))[: len(rows)].cpu()


def each_text(encoder: Encoder, texts: Sequence[str], *, batch: int, label: str) -> Tensor:
    """(n, D) float32 features of distinct texts, in their order, on the CPU of every rank; batches of like length."""
    tokenizer = encoder.loaded.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer")
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    mine = [texts[order[place]] for place in my_share(len(texts))]
    parts: list[Tensor] = []
    with progress(label, len(texts)) as advance:
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            parts.append(encoder.text(tokenizer(part)))
            advance(min(len(part) * world_size(), len(texts)))
    features = gather(torch.cat(parts))[: len(texts)].cpu()
    return features[torch.tensor(order).argsort()]


def refuse_not_finite(good: Tensor, rows: Sequence[int], table: Table, where: str) -> None:
    """bool (n,) of ``rows``: a diverged model would silently score chance. The same on all ranks, so that all stop."""
    if not bool(good.all()):
        key = table.read(rows[int((~good).nonzero()[0])]).key
        raise UniclError(
            f"non-finite features from {where}, first at '{key}' ({int((~good).sum())} of {len(good)} rows)",
            "the weights have diverged, or need precision fp32: evaluate an earlier checkpoint",
            exit_code=1,
        )
