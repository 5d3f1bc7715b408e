"""The interfaces of evaluation: evaluators, which measure a model on one split of a corpus, and the media they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from unicl_cli.contracts import ClassName, Features, Sample

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

FeaturePoint = Literal["pre", "post"]
"""Image features before (``Features.pooled``) or after (``Features.embed``) the projection into the joint space."""
Need = Literal["labels", "scores", "captions", "figures"]
"""A condition of an evaluator: rows with labels in the split, a loss that scores classes, a model that reads captions,
a loss with its own metrics (``measure``)."""


class MediaKind(NamedTuple):
    """A kind of media that a model encodes besides images and texts: sounds, depth maps, …

    ``name`` is its name in ``Sample.media`` and in ``encode_extra``; ``suffixes`` are ends of file names (".wav",
    ".depth.png"). ``read`` maps the bytes of a file to the tensor of one row; it raises UniclError for bytes that it
    cannot use, whose message says what is wrong with them ("a sound that is cut off").
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[bytes], Tensor]


class RowSets(NamedTuple):
    """The labels of n rows: those of row i are ``values[ends[i] : ends[i + 1]]``."""

    ends: NDArray[np.int64]
    """int64 (n + 1,)."""
    values: NDArray[np.int64]
    """int64 (labels of all rows,): class numbers, ascending in a row."""
    known: NDArray[np.int64]
    """int64 (n,): bit g is set if the row is annotated for group g of the corpus's classes."""


class EvalRows(Protocol):
    """All rows of one split and kind of a prepared corpus."""

    @property
    def has_sets(self) -> bool:
        """True if a row may have several labels, or lack annotations for a group; ``label`` is then not enough."""
        ...

    def __len__(self) -> int: ...
    def label_sets(self) -> RowSets: ...
    def read(self, row: int, *, media: bool = False) -> Sample:
        """Return one row; ``Sample.media`` is empty unless ``media`` is set."""
        ...

    def media_rows(self, kind: str) -> NDArray[np.bool_]:
        """Return whether each row has media of this kind, bool (n,), without reading them."""
        ...

    def column(self, name: str) -> Any:
        """Return one whole column (``label``, ``key``, ``texts``, ``source``) as a pyarrow ChunkedArray."""
        ...


class EvalCorpus(Protocol):
    """A prepared corpus as evaluators see it. Kinds of rows are ``labels``, ``captions`` and ``images``."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def classes(self) -> Sequence[ClassName]: ...
    @property
    def groups(self) -> tuple[int, ...] | None:
        """The number of each class's group, in the order of the groups' first classes; None without label sets."""
        ...

    def kinds(self, split: str) -> Sequence[str]:
        """Return the kinds of rows that a split has; none for a split that the corpus lacks."""
        ...

    def table(self, split: str, kind: str) -> EvalRows:
        """Raises UniclError if there is no such row."""
        ...


class EvalModel(Protocol):
    """A finished model as evaluators see it: inputs from any device, results in float32, no gradient.

    ``encode_image`` and ``encode_text`` take one batch and answer on ``device``. The others take any number of rows or
    texts, share them among the ranks and give every rank all results on the CPU; they raise UniclError for features
    that are not finite. Every rank must call each method equally often.
    """

    @property
    def device(self) -> torch.device: ...
    @property
    def templates(self) -> Sequence[str]:
        """The prompt templates of the model, each with a place for a class name."""
        ...

    @property
    def media(self) -> Sequence[MediaKind]:
        """The kinds of media that the model encodes; none for images and texts alone."""
        ...

    def encode_image(self, images: Tensor, /) -> Features: ...
    def encode_text(self, tokens: Tensor, /) -> Tensor: ...
    def encode_rows(
        self, table: EvalRows, rows: Sequence[int], *, point: FeaturePoint = "post", batch: int, label: str
    ) -> Tensor:
        """Return (n, d); ``label`` names the work in the progress line."""
        ...

    def encode_texts(self, texts: Sequence[str], *, batch: int, label: str) -> Tensor:
        """Return (n, D) for distinct texts."""
        ...

    def encode_media(self, name: str, table: EvalRows, rows: Sequence[int], *, batch: int, label: str) -> Tensor:
        """Return (n, D) for the media of this name, which all ``rows`` have."""
        ...


class Evaluator(Protocol):
    """Made by a ``unicl.evaluators`` factory: named metrics from a model and one split of a corpus.

    The result is written as JSON: numbers, strings, lists and mappings; fractions in [0, 1], never percent;
    ``warnings``, a list of strings, is shown to the user. It is the same on every rank, and empty if the split has
    nothing to measure. ``needs`` are checked before the call: an evaluator whose needs are not met is left out.
    ``limit`` is the maximum number of rows of each kind to use, during training; None means all.

    Optional: ``takes_sets``, True if an evaluator that needs labels reads ``label_sets()``; otherwise it is left out
    where a row has several labels or none. ``main``, the names of the metrics that a validation during training keeps;
    without it, all its floats. ``check(corpus, split)``, called before a training whose recipe names the evaluator:
    raises UniclError for a corpus that it cannot measure.
    """

    @property
    def needs(self) -> Sequence[Need]: ...
    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]: ...
