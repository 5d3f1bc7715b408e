"""The types that travel between the layers, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # at run time: pydantic below 2.13 looks at the fields of a Part
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from annotated_types import Ge, Gt, Le, Lt, MinLen

if TYPE_CHECKING:  # data sources use these types in workers that never load torch
    from torch import Tensor, nn

NO_LABEL = -1
"""The row has no class."""
NO_KEY = -1
"""The row is ignored: neither query nor candidate, left out of every mean."""
NO_TEXT = -1
"""The row has no text (in ``Batch.text_index``)."""


_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA, ICLR 2022) beside frozen weights; ``targets``: module names, or auto (see `lora`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    targets: Annotated[tuple[str, ...], MinLen(1)] | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Unlock:
    """A frozen tower, except its last ``unlock`` blocks and the layers after them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    unlock: Annotated[int, Gt(0)]


@dataclass(frozen=True)
class Tuning:
    """Training options of a tower: the keys that every tower takes beside its own options.

    ``freeze``: true freezes the tower, all freezes the model's projection after it too. ``lr_scale`` multiplies the
    learning rate of the run; ``layer_decay`` multiplies it once more for each block below the top.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    freeze: bool | Literal["all"] | Unlock = False
    lr_scale: Annotated[float, Ge(0)] = 1.0
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    lora: Lora | None = None


class Part(NamedTuple):
    """A plugin and its options, checked against the factory's signature; nested encoders also have a ``tuning``."""

    name: str
    options: Mapping[str, Any]
    tuning: Tuning = Tuning()


@dataclass(frozen=True)
class LogitScale:
    """Options of the logit scale: ``init`` is 1/temperature (not its log), ``max`` the cap applied after each step."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    init: Annotated[float, Gt(0)] = 14.2857
    max: Annotated[float, Gt(0)] = 100.0
    learn: bool = True


class ClassName(NamedTuple):
    """A class: ``key`` is its synset id or folder path, ``names[0]`` the name that prompts use."""

    key: str
    names: tuple[str, ...]


class Row(NamedTuple):
    """One sample of a source before its bytes are read: small and picklable, so that a plan can reorder rows."""

    key: str
    ref: str
    texts: tuple[str, ...]
    label: int


class DatasetSource(Protocol):
    """The object a ``unicl.datasets`` factory returns. ``templates``: templates, or the name of a list (`clip80`).

    Optional attributes: ``media`` (``("audio", "depth")``), the keys that ``read`` may return beside "image";
    ``stamp(row) -> int``, which tells an edited row from the planned one without reading it; and ``notes``, lines for
    `prepare` to print.
    """

    @property
    def splits(self) -> Sequence[str]: ...
    @property
    def classes(self) -> Sequence[ClassName]: ...
    @property
    def templates(self) -> Sequence[str] | str: ...
    def rows(self, split: str) -> Sequence[Row]:
        """Return the rows of a split: indexable, in the same order each time."""
        ...

    def read(self, row: Row) -> Mapping[str, bytes]:
        """Return ``{"image": bytes}`` and, for each kind of ``media`` that the row has, its bytes as they are.

        Called in worker processes. `prepare` stores an item of at most 64 MB unchanged; a larger one, or one of a kind
        that ``media`` does not name, leaves the row out with a reason. A row may lack any kind.
        """
        ...


class Sample(NamedTuple):
    """One row of a prepared corpus.

    ``image`` is the encoded file, ``text_hash`` one 62-bit hash per text. ``media`` maps a kind ("audio") to the bytes
    that the source returned; it is empty unless the reader asked for media (``Table.read(row, media=True)``).
    """

    image: bytes
    texts: tuple[str, ...]
    label: int
    source: str
    key: str
    text_hash: tuple[int, ...]
    media: Mapping[str, bytes] = {}


class Drawn(NamedTuple):
    """One sample as the loader made it. ``row`` is its number in the whole mix, the same on every rank.

    ``media`` maps a kind ("audio") to bytes, as the source returned them; a kind that the row lacks is absent. It is
    filled when the model or the loss has an ``extra`` hook, which turns it into tensors of ``Batch.extra``.
    """

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
    """int64 (U, L), L = the longest text of this share; U >= 1 always."""
    text_index: Tensor
    """int64 (b,): each sample's row of ``tokens``, or NO_TEXT."""
    labels: Tensor
    """int64 (b,): class, or NO_LABEL."""
    keys: Tensor
    """int64 (b,): two samples are positives if and only if their keys are equal."""
    draws: Tensor
    """int64 (b,): step * batch size + position in the global batch."""
    extra: dict[str, Tensor]
    """The same names in every batch on every rank, first dimension b."""


class Features(NamedTuple):
    """Features of a batch, at least float32: ``pooled`` (b, width) before the projection, ``embed`` (b, embed_dim)."""

    pooled: Tensor
    embed: Tensor


@runtime_checkable
class Model(Protocol):
    """The model as losses and evaluation call it. ``scale`` is a () tensor made from a parameter of shape [1]."""

    embed_dim: int
    image_width: int

    def encode_image(self, images: Tensor, /) -> Features: ...
    def encode_text(self, tokens: Tensor, /) -> Features: ...
    def scale(self, name: str = "text", /) -> Tensor: ...


class Tower(Protocol):
    """An nn.Module of group ``unicl.encoders``: (b, 3, H, W) normalised pixels or (U, L) tokens -> (…, width).

    ``units`` are its blocks, each called through its own forward (FSDP2 shards them one by one).
    An image tower may also own ``mean``, ``std``, ``image_size`` and ``frame``, which replaces the resize and centre
    crop: it turns an image into one of ``frame.size``. A text tower may own ``tokenizer``, ``pad_id``, ``trim_safe``.
    A tower that ``projects`` returns (pooled, joint) itself. ``store(folder)`` writes all that is needed to build the
    tower again without its first weights.
    """

    width: int

    @property
    def units(self) -> Sequence[nn.Module]: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...


class Tokenizer(Protocol):
    """Texts -> int64 (n, longest) ids, cut to ``context_length`` with the EOT kept; pure and picklable."""

    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def __call__(self, texts: Sequence[str], /) -> Tensor: ...


class Loss(Protocol):
    """An nn.Module of group ``unicl.losses``; may own parameters.

    ``score`` (``text | head | pair | none``) says how a trained model classifies; ``activation`` is
    ``softmax | sigmoid``. The result maps ``loss`` to a () tensor with gradient; other scalars are logged.
    The mean over ranks of ``loss`` is the loss of the global batch.
    """

    score: str
    activation: str

    def __call__(self, model: Model, batch: Batch, /) -> Mapping[str, Tensor]: ...


class Metric(Protocol):
    """A plain function: (n, C) scores, (n,) targets -> fraction in [0, 1], never percent."""

    def __call__(self, scores: Tensor, targets: Tensor, /) -> float: ...


class Sink(Protocol):
    """A destination of logged values: called on rank 0 only, with means over ranks."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...
