"""A finished model run over many images and texts: decoded ahead, an equal share for each rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import Features
from unicl_cli.core.dist import bare, gather, rank, world_size
from unicl_cli.core.guard import divergence_error
from unicl_cli.core.machine import cores
from unicl_cli.data.corpus import RowTable, undecodable
from unicl_cli.data.pictures import ImageError
from unicl_cli.evaluator_contracts import EvalRows, FeaturePoint, MediaKind
from unicl_cli.inference.media import named_kind, read_media
from unicl_cli.inference.progress import progress

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded

P = TypeVar("P")
R = TypeVar("R")
NO_CONTEXT: Callable[[], AbstractContextManager[Any]] = nullcontext


class Encoder(NamedTuple):
    """A loaded model as evaluation calls it: without gradient, on its own device, inside ``precision()``.

    ``encode_image`` and ``encode_text`` take one batch; ``map_rows``, ``encode_rows`` and ``encode_texts`` take any
    number of rows or texts. Every rank calls each method equally often, or FSDP2 hangs.
    """

    loaded: Loaded
    precision: Callable[[], AbstractContextManager[Any]] = NO_CONTEXT

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.loaded.step.parameters()).device

    @property
    def unit(self) -> bool:
        """True if scores are cosines: not if text vectors are the rows of a linear classifier."""
        model = bare(self.loaded.step).model
        return bool(getattr(model, "normalize", True)) and not getattr(model, "biased", False)

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompt templates of the model."""
        return self.loaded.templates

    @property
    def media(self) -> tuple[MediaKind, ...]:
        """Kinds of media that the model encodes."""
        return tuple(getattr(bare(self.loaded.step).model, "media", ()))

    # -- one batch ------------------------------------------------------------------------------------------------

    def call(self, name: str, *inputs: Tensor) -> Any:
        """Call a method of the model.

        Not under inference_mode, which would break the training that continues after a validation.
        """
        step: Any = bare(self.loaded.step)
        with torch.no_grad(), self.precision():
            return step.call(name, *(x.to(self.device, non_blocking=True) for x in inputs))

    def encode_image(self, images: Tensor, /) -> Features:
        """Encode uint8 (b, 3, H, W) to float32 features; ``embed`` has unit length if scores are cosines."""
        return self._at_float32(self.call("encode_image", images))

    def encode_text(self, tokens: Tensor, /) -> Tensor:
        """Encode int64 (n, L) to float32 (n, D), of unit length if scores are cosines."""
        return self._at_float32(self.call("encode_text", tokens)).embed

    def encode_extra(self, name: str, x: Tensor, /) -> Tensor:
        """Encode media of this name, (n, …) as `MediaKind.read` gives them, to float32 (n, D) as ``encode_text``."""
        step: Any = bare(self.loaded.step)
        with torch.no_grad(), self.precision():
            return self._at_float32(step.call("encode_extra", name, x.to(self.device, non_blocking=True))).embed

    def _at_float32(self, features: Features) -> Features:
        embed = features.embed.float()
        return Features(features.pooled.float(), F.normalize(embed, dim=1) if self.unit else embed)

    # -- any number -----------------------------------------------------------------------------------------------

    def map_rows(
        self,
        table: EvalRows,
        rows: Sequence[int],
        compute: Callable[[Tensor, Tensor], Tensor],
        *,
        batch: int,
        label: str,
    ) -> Tensor:
        """Compute a value for each row: the results in the order of ``rows``, on the CPU of every rank.

        ``compute`` maps images, uint8 (b, 3, H, W), and their places in ``rows``, int64 (b,), to (b, …). ``rows`` must
        not be empty. ``label`` names the work in the progress line.
        """

        def read(row: int) -> Callable[[], Tensor]:
            sample = table.read(row)

            def decode() -> Tensor:
                try:
                    return self.loaded.transform(sample.image)
                except ImageError as error:
                    where = table.shard_of(row) if isinstance(table, RowTable) else label
                    raise undecodable(where, sample.key, error) from error

            return decode

        return self._map_inputs(rows, read, compute, batch=batch, label=label)

    def _map_inputs(
        self,
        rows: Sequence[int],
        read: Callable[[int], Callable[[], Tensor]],
        compute: Callable[[Tensor, Tensor], Tensor],
        *,
        batch: int,
        label: str,
    ) -> Tensor:
        """Compute as ``map_rows``; ``read(row)`` reads a row here and returns what decodes it in another thread."""
        mine = rows_of_rank(len(rows))
        parts: list[Tensor] = []
        inputs = decode_ahead((read(rows[place]) for place in mine), lambda decode: decode(), batch)
        with progress(label, len(rows)) as advance:
            for start, part in zip(range(0, len(mine), batch), inputs, strict=True):
                parts.append(compute(torch.stack(part), torch.tensor(mine[start : start + batch])))
                advance(min(len(part) * world_size(), len(rows)))
        return gather(torch.cat(parts))[: len(rows)].cpu()

    def encode_rows(
        self, table: EvalRows, rows: Sequence[int], *, point: FeaturePoint = "post", batch: int, label: str
    ) -> Tensor:
        """Encode the images of ``rows``: float32 (n, d) from before or after the projection, on the CPU of every rank.

        Raises UniclError if a feature is not finite.
        """

        def compute(images: Tensor, _: Tensor) -> Tensor:
            features = self.encode_image(images)
            return features.pooled if point == "pre" else features.embed

        features = self.map_rows(table, rows, compute, batch=batch, label=label)
        check_finite(features.isfinite().all(1), rows, table, f"{self.loaded.name} on {label}")
        return features

    def encode_media(self, name: str, table: EvalRows, rows: Sequence[int], *, batch: int, label: str) -> Tensor:
        """Encode the media of ``rows``, which all have some of this name: float32 (n, D), on the CPU of every rank.

        Raises UniclError if the model does not encode this kind, for media that it cannot use, and for features that
        are not finite.
        """
        kind = named_kind(name, self.media, self.loaded.name)

        def read(row: int) -> Callable[[], Tensor]:
            return partial(read_media, kind, table.read(row, media=True))

        def compute(x: Tensor, _: Tensor) -> Tensor:
            return self.encode_extra(name, x)

        features = self._map_inputs(rows, read, compute, batch=batch, label=label)
        check_finite(features.isfinite().all(1), rows, table, f"{self.loaded.name} on {label}")
        return features

    def encode_texts(self, texts: Sequence[str], *, batch: int, label: str) -> Tensor:
        """Encode distinct texts: float32 (n, D) in their order, on the CPU of every rank; batches of like length.

        Raises UniclError if a feature is not finite.
        """
        tokenizer = self.loaded.tokenizer
        if tokenizer is None:
            raise ValueError("the model has no tokenizer")
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        mine = [texts[order[place]] for place in rows_of_rank(len(texts))]
        parts: list[Tensor] = []
        with progress(label, len(texts)) as advance:
            for start in range(0, len(mine), batch):
                part = mine[start : start + batch]
                parts.append(self.encode_text(tokenizer(part)))
                advance(min(len(part) * world_size(), len(texts)))
        features = gather(torch.cat(parts))[: len(texts)].cpu()
        if not bool(features.isfinite().all()):
            raise divergence_error(f"non-finite text features from {self.loaded.name}")
        return features[torch.tensor(order).argsort()]


def rows_of_rank(n: int) -> list[int]:
    """Return the rows of n that this rank works on: an equal number on every rank, the last row repeated.

    Gathered over ranks and cut to n, they are in order again.
    """
    each = -(-n // world_size())
    return [min(row, n - 1) for row in range(rank() * each, (rank() + 1) * each)]


def decode_ahead(payloads: Iterable[P], work: Callable[[P], R], batch: int) -> Iterator[list[R]]:
    """Yield ``work`` of each payload in order, a batch at a time; threads prepare the next batch meanwhile."""
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


def check_finite(finite: Tensor, rows: Sequence[int], table: EvalRows, where: str) -> None:
    """Raise UniclError unless ``finite``, bool (n,) of ``rows``, is true everywhere: a diverged model scores chance.

    ``finite`` must be the same on all ranks, so that all of them stop.
    """
    if not bool(finite.all()):
        key = table.read(rows[int((~finite).nonzero()[0])]).key
        count = int((~finite).sum())
        raise divergence_error(f"non-finite features from {where}, first at '{key}' ({count} of {len(finite)} rows)")
