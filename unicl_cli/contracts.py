"""The types that travel between the layers, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # at run time: pydantic below 2.13 looks at the fields of a Part
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from annotated_types import Ge, Gt, Le, Lt, MinLen

if TYPE_CHECKING:  # data sources use these types in workers that never load torch
    from torch import Tensor

NO_LABEL = -1
"""The row has no class."""
NO_KEY = -1
"""The row is ignored: neither query nor candidate, left out of every mean."""
NO_TEXT = -1
"""The row has no text (in ``Batch.text_index``)."""
MOST_GROUPS = 63
"""Maximum number of groups of classes: a row's groups are bits of an int64."""
ALL_GROUPS = (1 << MOST_GROUPS) - 1
"""The row is annotated for every group of classes."""

_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA, ICLR 2022) on frozen weights.

    ``targets`` are the ends of module names; auto: every Linear layer of the tower's blocks (`build/lora.py`).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    rank: Annotated[int, Gt(0), Le(65536)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    targets: Annotated[tuple[str, ...], MinLen(1)] | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Unlock:
    """A tower that is frozen except for its last ``unlock`` blocks and everything after them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    unlock: Annotated[int, Gt(0), Le(1024)]


@dataclass(frozen=True)
class Tuning:
    """The training options that every tower takes in addition to its own.

    ``freeze``: true freezes the tower, all also the projection that the model puts after it. ``lr_scale`` multiplies
    the learning rate of the run; ``layer_decay`` multiplies it again for each block below the top.
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
    """The learned factor on cosines: ``init`` is 1/temperature (not its log), ``max`` its cap after each step."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    init: Annotated[float, Gt(0)] = 14.2857
    max: Annotated[float, Gt(0)] = 100.0
    learn: bool = True


@dataclass(frozen=True)
class ClassColumns:
    """Prompts of all classes as further candidates of each image: ``template`` has a ``{}`` for the class name."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    template: Annotated[str, MinLen(1)] = "a photo of a {}."


class ClassName(NamedTuple):
    """A class: ``key`` is its synset id or folder path, ``names[0]`` the name that prompts use.

    ``group`` is the attribute that the class is a value of ("colour"), or its rank in a taxonomy; ``parent`` is the key
    of the class above it.
    """

    key: str
    names: tuple[str, ...]
    group: str = ""
    parent: str = ""


class Row(NamedTuple):
    """One sample of a source before its bytes are read: small and picklable, so that a plan can reorder rows.

    A row with several labels has them all in ``labels``, and NO_LABEL as its ``label``. ``known`` names the groups of
    classes that it is annotated for, those of its labels among them; None means all groups of its source. A row with
    neither label nor labels is labelled only if ``known`` is not None: it is annotated, and nothing was found.
    ``media`` holds (kind, place) of each item of media that the source will read with the image, as ``ref`` is the
    place of the image; a source that needs only ``ref`` leaves it empty.
    """

    key: str
    ref: str
    texts: tuple[str, ...]
    label: int
    labels: tuple[int, ...] = ()
    known: tuple[str, ...] | None = None
    media: tuple[tuple[str, str], ...] = ()

    def label_set(self) -> tuple[int, ...]:
        """Return all labels of the row, one or several."""
        return self.labels or (() if self.label == NO_LABEL else (self.label,))

    def is_labelled(self) -> bool:
        """Return whether the row has a label, or is annotated as having none."""
        return self.label != NO_LABEL or bool(self.labels) or self.known is not None


class DatasetSource(Protocol):
    """The object a ``unicl.datasets`` factory returns. ``templates``: templates, or the name of a list (`clip80`).

    Optional: ``media`` (``("audio", "depth")``), what ``read`` returns besides "image"; ``stamp(row) -> int``, which
    changes if the row was edited after planning; ``extent(row)``, an image's place (`Extent`), to compare images by few
    reads; ``url(row) -> str | None``, the address of an image that `prepare` is to download, instead of calling
    ``read``; ``origin(row) -> str | None``, the address that an image came from; and ``notes``, lines for `prepare` to
    print.
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
        """Return ``{"image": bytes}`` and, for each kind of ``media`` that the row has, its bytes, unchanged.

        Called in worker processes. `prepare` stores an item of at most 64 MB unchanged; a larger one, or one of a kind
        that ``media`` does not name, leaves the row out with a reason. A row may lack any kind.
        """
        ...


class Sample(NamedTuple):
    """One row of a prepared corpus.

    ``image`` is the encoded file, ``text_hash`` one 62-bit hash per text. ``media`` maps a kind ("audio") to the bytes
    that the source returned; it is empty unless the reader asked for media (``Table.read(row, media=True)``).
    ``labels`` are all labels of the row, ``label`` the only one or NO_LABEL; bit g of ``known`` is set if the row is
    annotated for group g of the corpus.
    """

    image: bytes
    texts: tuple[str, ...]
    label: int
    source: str
    key: str
    text_hash: tuple[int, ...]
    media: Mapping[str, bytes] = {}
    labels: tuple[int, ...] = ()
    known: int = ALL_GROUPS


class Drawn(NamedTuple):
    """One sample as the loader made it. ``row`` is its number in the whole mix, the same on every rank.

    ``media`` maps a kind ("audio") to bytes, as the source returned them; a kind that the row lacks is absent. It is
    filled when the model or the loss has an ``extra`` hook, which turns it into tensors of ``Batch.extra``. ``image``
    is None for a hook that declares to read no images (`core.image_cache.reads_no_images`).
    ``labels`` are all labels of the row, ``label`` the only one or NO_LABEL; ``shown`` is the class that its text
    names, NO_LABEL for a caption. Bit g of ``known`` is set if the row is annotated for group g of the mix. ``named``
    are the classes that the caption of a row without a label names, if `data.caption_labels` is hide. A row with two
    texts has a caption as its text and also a ``prompt``, which names the class ``prompted``. ``key`` is the key of the
    row in its corpus where media are read, for errors about them.
    """

    row: int
    draw: int
    seed: int
    image: Tensor
    label: int
    text: str | None
    text_hash: int
    media: Mapping[str, bytes]
    labels: tuple[int, ...] = ()
    shown: int = NO_LABEL
    known: int = ALL_GROUPS
    named: tuple[int, ...] = ()
    prompt: str | None = None
    prompted: int = NO_LABEL
    key: str = ""


class LabelSets(NamedTuple):
    """The label sets of a mix in which a row may have several labels, or lack annotations for a group of classes.

    A loss takes such a mix if its factory has a parameter ``label_sets: LabelSets | None`` without a default; it is
    None for a mix where each labelled row has one label. `core.label_sets.set_columns` makes its columns.
    """

    width: int
    """Maximum number of labels of a row; classes above the row's own in a taxonomy count."""
    groups: tuple[int, ...]
    """The number of each class's group."""
    names: tuple[str, ...]
    """The names of the groups; one empty name if the classes have none."""
    silent: tuple[int, ...] = ()
    """Classes left out of all labels because every row has them: the root of a taxonomy with one root."""


class Batch(NamedTuple):
    """One rank's share of one step: b = batch size / world size rows, U distinct texts."""

    images: Tensor
    """uint8 (b, 3, H, W), or (b, V, 3, H, W) with V views; `core.image_cache.EncodedImages` of b rows where a frozen
    tower has encoded them before the first step, which `Model.encode_image` alone can use."""
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
    """Output of a tower, at least float32: ``pooled`` (b, width) before the projection, ``embed`` (b, embed_dim)."""

    pooled: Tensor
    embed: Tensor


@runtime_checkable
class Model(Protocol):
    """The interface that losses and evaluation call. ``scale`` is a () tensor made from a parameter of shape [1].

    Optional attributes: ``text = None`` (no text tower, so no tokenizer is made), ``normalize`` and ``biased`` (False
    and True if text vectors are rows of a linear classifier, so that scores are not cosines), ``media`` (each
    `MediaKind` that ``encode_extra`` takes, for evaluation).

    Optional methods: ``image_tokens(images)``, ``text_tokens(tokens)`` and ``encode_extra(name, x)`` for losses that
    need them; ``extra(drawn, tokens, text_index)`` adds fields to each batch; ``after_step()`` runs after each update
    (cap of a scale, queues); ``remember_texts()`` starts the cache of a frozen text tower and returns whether it can,
    with ``text_width`` (numbers per cached text) and ``bank`` (the cache; None ends it). ``encode_frozen(images)``
    encodes as far as the frozen image tower goes, (b, D), or returns None if it learns; ``encode_image`` of a model
    that has it also takes these outputs as `core.image_cache.EncodedImages`.
    """

    embed_dim: int
    image_width: int

    def encode_image(self, images: Tensor, /) -> Features: ...
    def encode_text(self, tokens: Tensor, /) -> Features: ...
    def scale(self, name: str = "text", /) -> Tensor: ...


class Loss(Protocol):
    """An nn.Module of group ``unicl.losses``; may own parameters.

    ``score`` (``text | head | pair | none``) says how a trained model classifies; ``activation`` is
    ``softmax | sigmoid``. The result maps ``loss`` to a () tensor with gradient; other scalars are logged.
    The mean over ranks of ``loss`` is the loss of the global batch.

    Optional: ``bias``, added to the scores of ``text``; ``head``, the classifier of ``head``; ``pair_scores(model,
    images, tokens)`` -> (b, P) of ``pair``, the scores of P prompts; ``extra`` and ``after_step()``, as on a model;
    ``two_texts``, true if it reads the columns of a second text (`data.text_for_labelled: both`); ``reads_media``, true
    if it learns from each kind of the model's ``media``, which a row of the training data must then have;
    ``check_rows(rows)`` -> warnings, on a model too: it is called once before training, and by the evaluator `loss`,
    with the key, the media and the image's (width, height) of every row (it iterates over them), and raises UniclError
    for those that it cannot use; ``measure(model, batch)``, which maps the names of its own metrics to (hits, count),
    (2,), for the evaluator `loss`. With ``pair`` also ``check_prompts(tokens, tokenizer)`` -> warnings about the
    prompts of all classes, called once before they are scored, and ``many_prompts``, true if it scores several
    templates of many classes without the user's consent.
    """

    score: str
    activation: str

    def __call__(self, model: Model, batch: Batch, /) -> Mapping[str, Tensor]: ...


class Metric(Protocol):
    """A plain function: (n, C) scores and (n,) targets -> a fraction in [0, 1], never percent."""

    def __call__(self, scores: Tensor, targets: Tensor, /) -> float: ...


class Sink(Protocol):
    """A destination of logged values: called on rank 0 only, with means over ranks."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...
