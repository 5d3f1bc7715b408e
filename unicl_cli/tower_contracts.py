"""The interfaces of towers and tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor, nn


class Frame(Protocol):
    """A tower's own resizing and cropping: an image -> an image of ``size`` (height, width)."""

    @property
    def size(self) -> tuple[int, int]: ...
    def __call__(self, image: Image.Image, /) -> Image.Image: ...


@dataclass(frozen=True)
class TowerTraits:
    """Everything that the rest of the program may ask about a tower, besides its ``width`` and ``units``.

    A tower declares it as the attribute ``traits``; `core.towers.traits_of` is the only reader. A tower without
    ``traits`` has the defaults, except for attributes of the same names: ``mean``, ``std``, ``frame``, ``tokenizer``,
    ``pad_id``, ``context_length``, ``trim_safe``, ``drops`` and ``projects``.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Image: mean of pixels in [0, 1], one number per channel. Read by `TwoTower` (normalisation), `load_init`."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Image: their standard deviation. Read as ``mean`` is."""
    frame: Frame | None = None
    """Image: its resizing in evaluation. None: short side and centre crop. Read by `load_model`, validation."""
    channels_last: bool = False
    """Image: computes on channels-last pixels. Read by itself; `parallel.channels_last: false` clears it."""

    tokenizer: Tokenizer | None = None
    """Text: its own tokenizer, used unless the recipe names one. Read by `build_step`, `load_model`."""
    pad_id: int = 0
    """Text: the token that pads a text after its end. Read by the text cache."""
    context_length: int | None = None
    """Text: the maximum number of tokens that it reads. None: any number. Read by the text cache."""
    trim_safe: bool = False
    """Text: padding changes no output, however much there is. Read by the text cache, which needs it."""
    packs: bool | None = None
    """Text: packs its tokens (`encoders/packing.py`). None: cannot; False: could, but `parallel.pack_texts` is false.
    Read by itself and by `compile_units`, which leaves the sizes of its blocks open unless it is None."""
    prompt_token: int | None = None
    """Text: the token that begins a prompt in training, in place of the start token; captions and all texts at test
    time keep that one. None: no such token. Read by `build_step`."""
    drops: bool = False
    """Text: has dropout that is not an `nn.Dropout`, so equal texts differ. Read by `Step.drops_texts`."""

    projects: bool = False
    """Returns (pooled, joint) itself and gets no projection. Read by `TwoTower`."""
    joint: bool = False
    """Its output is already in the joint space and gets no projection. Read by `TwoTower`."""
    biased: bool = False
    """Text: the last entry of its output is a bias per class, which is not normalised. Read by `TwoTower`."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings beyond the recipe's that change what the model computes, nested. Compared by `load_init`."""


class Tower(Protocol):
    """An nn.Module of group ``unicl.encoders``: (b, 3, H, W) normalised pixels or (U, L) tokens -> (…, width).

    ``units`` are its blocks, each called through its own forward: FSDP2 shards them one by one, LoRA, ``unlock`` and
    ``layer_decay`` count them. ``width`` and ``units`` are all that a tower needs; an optional attribute ``traits``
    says the rest (`TowerTraits`). Four methods are optional: ``tokens(x)`` -> (…, N, width), the states before pooling;
    ``pyramid(x)`` -> feature maps (b, C, H / s, W / s) from fine to coarse, for images whose sides are multiples of the
    coarsest stride; ``no_weight_decay()`` -> names of parameters that do not decay, as timm's; and ``store(folder)``
    (`StoresFiles`).
    """

    width: int

    @property
    def units(self) -> Sequence[nn.Module]: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class StoresFiles(Protocol):
    """A tower that needs files besides recipe and weights, such as a configuration or a tokenizer."""

    def store(self, folder: Path, /) -> None:
        """Write into ``folder`` of the run what is needed to build the tower again without its original weights."""
        ...


class Tokenizer(Protocol):
    """Texts -> int64 (n, longest) ids, at most ``context_length`` long, EOT kept when cut; pure and picklable.

    Optional: ``pad_id`` and ``eot_id``, the ids of padding and end of text; ``cuts(texts)``, the number of texts that
    are too long; ``decode(rows)``, the texts of rows of ids; ``save(path)``, which writes a `tokenizer.json`;
    ``clean``, True if texts are cleaned first; ``prompt_token``, that of the text tower (`TowerTraits`).
    """

    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def __call__(self, texts: Sequence[str], /) -> Tensor: ...
