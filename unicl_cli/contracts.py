"""The types that travel between the layers; no behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # at run time: pydantic below 2.13 looks at the fields of a Part
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from annotated_types import Ge, Gt, Le, Lt, MinLen

if TYPE_CHECKING:  # data sources use these types in workers that never load torch
    from pathlib import Path

    import torch
    from torch import Tensor, nn

NO_LABEL = -1
"""The row has no class."""
NO_KEY = -1
"""The row neither asks nor answers: no column of a softmax, not counted in a mean."""
NO_TEXT = -1
"""In ``Batch.text_index``: the row has no text."""


_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA, ICLR 2022) beside frozen weights; ``targets`` are names of modules, auto: see `lora`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    targets: Annotated[tuple[str, ...], MinLen(1)] | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Unlock:
    """Frozen but for the last ``unlock`` blocks and what comes after them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    unlock: Annotated[int, Gt(0)]


@dataclass(frozen=True)
class Tuning:
    """How a tower learns: the keys that every tower takes beside its own options.

    ``freeze``: true = the tower, all = and the projection that the model puts after it. ``lr_scale`` times the rate of
    the run; ``layer_decay`` times that for each block below the top.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    freeze: bool | Literal["all"] | Unlock = False
    lr_scale: Annotated[float, Ge(0)] = 1.0
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    lora: Lora | None = None


class Part(NamedTuple):
    """A plugin and its options, checked against the factory's signature; nested encoders have a ``tuning`` too."""

    name: str
    options: Mapping[str, Any]
    tuning: Tuning = Tuning()


@dataclass(frozen=True)
class LogitScale:
    """``init`` is 1/temperature (not its log), ``max`` the cap that is applied after each step."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    init: Annotated[float, Gt(0)] = 14.2857
    max: Annotated[float, Gt(0)] = 100.0
    learn: bool = True


class ClassName(NamedTuple):
    """A class: ``key`` is its synset id or folder path; ``names[0]`` is the name that prompts use."""

    key: str
    names: tuple[str, ...]


class Row(NamedTuple):
    """One sample of a source before any byte is read: light and picklable, so that a plan can permute and cut rows."""

    key: str
    ref: str
    texts: tuple[str, ...]
    label: int


class DatasetSource(Protocol):
    """Made by a ``unicl.datasets`` factory. ``templates`` is a tuple of templates or the name of a list (`clip80`)."""

    @property
    def splits(self) -> Sequence[str]: ...
    @property
    def classes(self) -> Sequence[ClassName]: ...
    @property
    def templates(self) -> Sequence[str] | str: ...
    def rows(self, split: str) -> Sequence[Row]:
        """Indexable, in the same order each time."""
        ...

    def read(self, row: Row) -> Mapping[str, bytes]:
        """``{"image": bytes}``; called in worker processes."""
        ...


class Sample(NamedTuple):
    """One row of a prepared corpus. ``image`` is the encoded file, ``text_hash`` one 62-bit hash per text."""

    image: bytes
    texts: tuple[str, ...]
    label: int
    source: str
    key: str
    text_hash: tuple[int, ...]


class Drawn(NamedTuple):
    """One sample in a loader worker. ``row`` is its number in the whole mix, the same on every rank."""

    row: int
    draw: int
    seed: int
    image: Tensor
    label: int
    text: str | None
    text_hash: int
    media: Mapping[str, bytes]


class Batch(NamedTuple):
    """One rank's share of one step: b = batch size / world size rows, U distinct texts."""

    images: Tensor
    """uint8 (b, 3, H, W), or (b, V, 3, H, W) with V views."""
    tokens: Tensor
    """int64 (U, L), cut to the longest; U >= 1 always."""
    text_index: Tensor
    """int64 (b,): row of ``tokens`` for each sample, or NO_TEXT."""
    labels: Tensor
    """int64 (b,): class, or NO_LABEL."""
    keys: Tensor
    """int64 (b,): two samples are positives iff equal."""
    draws: Tensor
    """int64 (b,): step * batch size + position in the global batch."""
    extra: dict[str, Tensor]
    """The same names in every batch on every rank, first dimension b."""


class Features(NamedTuple):
    """What a tower gives, at least float32: ``pooled`` (b, width) before the projection, ``embed`` (b, embed_dim)."""

    pooled: Tensor
    embed: Tensor


@runtime_checkable
class Model(Protocol):
    """What losses and evaluation call. ``scale`` is a () tensor made from a parameter of shape [1]."""

    embed_dim: int
    image_width: int

    def encode_image(self, images: Tensor, /) -> Features: ...
    def encode_text(self, tokens: Tensor, /) -> Features: ...
    def scale(self, name: str = "text", /) -> Tensor: ...


class Tower(Protocol):
    """An nn.Module of group ``unicl.encoders``: (b, 3, H, W) normalised pixels or (U, L) tokens -> (…, width).

    ``units`` are its blocks, each called through its own forward (FSDP2 shards them one by one).
    An image tower may also own ``mean, std, image_size`` and ``frame`` (image -> one of ``frame.size``, instead of
    short side and a centre crop); a text tower ``tokenizer, pad_id, trim_safe``. One that ``projects`` returns (pooled,
    joint) by itself; ``store(folder)`` writes what builds it again without its first weights.
    """

    width: int

    @property
    def units(self) -> Sequence[nn.Module]: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...


class Tokenizer(Protocol):
    """Texts -> int64 (n, longest) ids, at most ``context_length`` long, EOT kept when cut; pure and picklable."""

    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def __call__(self, texts: Sequence[str], /) -> Tensor: ...


class Loss(Protocol):
    """An nn.Module of group ``unicl.losses``; may own parameters.

    ``score`` is ``text | head | pair | none`` and says how a trained model classifies, ``activation`` is
    ``softmax | sigmoid``. The result maps ``loss`` to a () tensor with gradient; other scalars are logged.
    The mean over ranks of ``loss`` is the loss of the global batch.
    """

    score: str
    activation: str

    def __call__(self, model: Model, batch: Batch, /) -> Mapping[str, Tensor]: ...


class Metric(Protocol):
    """A plain function: (n, C) scores and (n,) targets -> a share in [0, 1], never percent."""

    def __call__(self, scores: Tensor, targets: Tensor, /) -> float: ...


FeaturePoint = Literal["pre", "post"]
"""Image features before (``Features.pooled``) or after (``Features.embed``) the projection into the joint space."""
Need = Literal["labels", "scores", "captions"]
"""A condition of an evaluator: rows with labels in the split, a loss that scores classes, a model that reads captions.
"""


class EvalRows(Protocol):
    """All rows of one split and kind of a prepared corpus."""

    def __len__(self) -> int: ...
    def read(self, row: int) -> Sample: ...
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
    def kinds(self, split: str) -> Sequence[str]:
        """Return the kinds of rows that a split has; none if there is no such split."""
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


class Evaluator(Protocol):
    """Made by a ``unicl.evaluators`` factory: named figures from a model and one split of a corpus.

    The result is written as JSON: numbers, texts, lists and mappings; shares in [0, 1], never percent; ``warnings``, a
    list of texts, is shown to the user. It is the same on every rank, and empty if the split has nothing to measure.
    ``needs`` are checked before the call: an evaluator that lacks one of them is left out. ``limit`` is the most rows
    of each kind to use, during training; None means all.
    """

    @property
    def needs(self) -> Sequence[Need]: ...
    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]: ...


class Sink(Protocol):
    """Where logged values go: rank 0 only, values already means over ranks."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...
