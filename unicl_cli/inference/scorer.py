"""Scores of classes by a loaded model: by text, head or pair, as its loss declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.core.dist import bare
from unicl_cli.core.guard import divergence_error
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.classifier import count_cut, prompts_of, zeroshot_classifier
from unicl_cli.evaluator_contracts import MediaKind
from unicl_cli.formats import list_first
from unicl_cli.inference.encoder import Encoder

SHOWN = 5
MANY_CLASSES = 100
"""Maximum number of classes that a pair score takes in several templates without the user's consent."""

ALL = slice(None)
"""All classes of a scorer."""


class Scorer(NamedTuple):
    """Scores of classes in two steps, on the model's device.

    ``encode``: uint8 (b, 3, H, W) -> float32 (b, D), of which ``classify`` makes float32 (b, C), the scores of the
    classes in a slice, in their order. A larger score is likelier; with ``cosines`` scores lie in [-1, 1]. ``logits``
    turns scores into the input of the loss's activation: a sigmoid for each class if ``sigmoid``, else a softmax over
    the classes. ``first``, int64 (C,), is the lowest class with the same prompts. ``known``, bool (C,), marks the
    classes that can be answered. ``warnings`` are for the user. ``encode_media`` encodes each kind of ``media`` as
    ``encode`` does images.
    """

    encode: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor, slice], Tensor]
    logits: Callable[[Tensor], Tensor]
    sigmoid: bool
    cosines: bool
    first: Tensor
    known: Tensor
    warnings: tuple[str, ...] = ()
    media: tuple[MediaKind, ...] = ()
    encode_media: Callable[[str, Tensor], Tensor] | None = None

    def scores(self, images: Tensor) -> Tensor:
        """Score all classes: uint8 (b, 3, H, W) -> float32 (b, C)."""
        return self.classify(self.encode(images), ALL)

    def media_scores(self, name: str, x: Tensor) -> Tensor:
        """Score all classes by media of this name, (b, …) as their `MediaKind` reads them -> float32 (b, C)."""
        if self.encode_media is None:
            raise ValueError(f"the scorer does not encode {name}")
        return self.classify(self.encode_media(name, x), ALL)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Turn scores (b, C) into probabilities (b, C)."""
        logits = self.logits(scores)
        return logits.sigmoid() if self.sigmoid else logits.softmax(1)


def make_scorer(
    encoder: Encoder,
    classes: Sequence[ClassName],
    *,
    prompts: Sequence[Sequence[str]] | None = None,
    batch: int = 256,
) -> Scorer:
    """Return the scorer for ``classes``; ``prompts`` None means the first name of each in the model's templates."""
    loaded = encoder.loaded
    loss: Any = bare(loaded.step).loss
    if loss.score == "none":
        raise UniclError(
            f"model {loaded.name} cannot score classes: its loss trains features only",
            "measure its features with `unicl probe`",
        )
    if loss.score == "head":
        return make_head_scorer(encoder, loss, classes)
    if loaded.tokenizer is None:
        raise UniclError(f"model {loaded.name} has no text tower", "measure its features with `unicl probe`")
    wanted = prompts_of([each.names[:1] for each in classes], loaded.templates) if prompts is None else prompts
    if loss.score == "pair":
        return make_pair_scorer(encoder, loss, classes, wanted)
    return make_text_scorer(encoder, loss, classes, wanted, batch=batch)


def identity(scores: Tensor) -> Tensor:
    return scores


def full_precision(tensor: Tensor) -> Any:
    return torch.autocast(tensor.device.type, enabled=False)


def make_text_scorer(
    encoder: Encoder, loss: Any, classes: Sequence[ClassName], prompts: Sequence[Sequence[str]], *, batch: int
) -> Scorer:
    """Score by cosines with the mean prompt of each class; a loss with a ``bias`` adds it to the logits (SigLIP)."""
    loaded = encoder.loaded
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer")
    shot = zeroshot_classifier(
        prompts, encode_text=encoder.encode_text, tokenizer=tokenizer, unit=encoder.unit, batch=batch
    )
    if not bool(shot.weights.isfinite().all()):
        raise divergence_error(f"non-finite text features from {loaded.name}")
    shot = shot._replace(weights=shot.weights.to(encoder.device), first=shot.first.to(encoder.device))
    scale: Tensor = encoder.call("scale").float()
    bias = torch.as_tensor(getattr(loss, "bias", 0.0)).detach().float().to(encoder.device)

    def encode(images: Tensor) -> Tensor:
        return encoder.encode_image(images).embed

    def classify(embed: Tensor, classes: slice) -> Tensor:
        with full_precision(embed):
            return shot.cosines(embed, classes)

    def logits(cosines: Tensor) -> Tensor:
        return scale * cosines + bias

    return Scorer(
        encode=encode,
        classify=classify,
        logits=logits,
        sigmoid=loss.activation == "sigmoid",
        cosines=encoder.unit,
        first=shot.first.cpu(),
        known=torch.ones(len(classes), dtype=torch.bool),
        warnings=(
            *warn_about_duplicates(classes, shot.duplicates),
            *warn_about_cuts(shot.cut, shot.prompts, tokenizer.context_length),
        ),
        media=encoder.media,
        encode_media=encoder.encode_extra,
    )


def warn_about_duplicates(classes: Sequence[ClassName], duplicates: Sequence[Sequence[int]]) -> list[str]:
    """Return a warning if classes have the same prompts."""
    groups = [" = ".join(classes[label].names[0] for label in group) for group in duplicates]
    return [f"{len(groups)} groups of classes have the same prompts: {shorten_names(groups)}"] if groups else []


def warn_about_cuts(cut: int, prompts: int, length: int) -> list[str]:
    """Return a warning if prompts are longer than the context."""
    return [f"{cut} of {prompts} prompts were cut at the context of {length} tokens"] if cut else []


def make_head_scorer(encoder: Encoder, loss: Any, classes: Sequence[ClassName]) -> Scorer:
    """Score by the columns of the trained classifier; a class that it does not know scores -inf."""
    loaded = encoder.loaded
    known = head_columns(loaded.classes)
    columns = [known.get(each.key, known.get(each.names[0])) for each in classes]
    unknown = [each.names[0] for each, column in zip(classes, columns, strict=True) if column is None]
    if len(unknown) == len(classes):
        raise no_class_known(loaded.name, unknown)
    taken = torch.tensor([column or 0 for column in columns], device=encoder.device)
    hidden = torch.tensor([column is None for column in columns], device=encoder.device)

    def encode(images: Tensor) -> Tensor:
        return encoder.encode_image(images).pooled

    def classify(pooled: Tensor, classes: slice) -> Tensor:
        with torch.no_grad(), full_precision(pooled):
            return loss.head(pooled).float()[:, taken[classes]].masked_fill(hidden[classes], -torch.inf)

    warning = (
        f"{len(unknown)} of {len(classes)} classes are unknown to the model's classifier: {shorten_names(unknown)}"
    )
    return Scorer(
        encode=encode,
        classify=classify,
        logits=identity,
        sigmoid=loss.activation == "sigmoid",
        cosines=False,
        first=torch.arange(len(classes)),
        known=~hidden.cpu(),
        warnings=(warning,) if unknown else (),
    )


def no_class_known(model: str, names: Sequence[str]) -> UniclError:
    """Return the error for a classifier whose own classes do not include any of the requested ones."""
    return UniclError(
        f"model {model} knows none of these classes: {shorten_names(names)}",
        "use a model with a text tower, or `unicl probe`: this one has a classifier of its own classes",
    )


def head_columns(classes: Sequence[ClassName]) -> dict[str, int]:
    """Map keys and names of classes to columns; a key takes precedence over a name."""
    by_name = {name: column for column, each in reversed(list(enumerate(classes))) for name in each.names}
    return by_name | {each.key: column for column, each in enumerate(classes)}


def make_pair_scorer(
    encoder: Encoder, loss: Any, classes: Sequence[ClassName], prompts: Sequence[Sequence[str]]
) -> Scorer:
    """Score by the loss itself: the mean score of an image over the prompts of each class.

    Each distinct prompt is scored once for an image, all of them in one call. UniclError for many prompts of many
    classes, unless the loss has ``many_prompts``.
    """
    loaded = encoder.loaded
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer")
    shared = group_prompts(prompts)
    check_prompt_count(loss, len(prompts), len(shared.texts))
    tokens = tokenizer(shared.texts)
    check = getattr(loss, "check_prompts", None)
    prompt_warnings: Sequence[str] = () if check is None else check(tokens, tokenizer)
    weights = shared.weights.to(encoder.device)

    def encode(images: Tensor) -> Tensor:
        found = encoder.call("pair_scores", images, tokens).float()
        with full_precision(found):
            return found @ weights if shared.averages else found[:, shared.only]

    def classify(found: Tensor, classes: slice) -> Tensor:
        return found[:, classes]

    return Scorer(
        encode=encode,
        classify=classify,
        logits=identity,
        sigmoid=loss.activation == "sigmoid",
        cosines=False,
        first=shared.first,
        known=torch.ones(len(prompts), dtype=torch.bool),
        warnings=(
            *warn_about_duplicates(classes, shared.duplicates),
            *warn_about_cuts(count_cut(shared.texts, tokens, tokenizer), len(shared.texts), tokenizer.context_length),
            *prompt_warnings,
        ),
    )


class SharedPrompts(NamedTuple):
    """The distinct prompts of C classes. ``weights`` float32 (P, C): the share of a prompt in the mean of a class.

    ``only`` int64 (C,): the first prompt of each class, which is all that it has unless ``averages``. ``first`` and
    ``duplicates`` are those of `TextClassifier`.
    """

    texts: list[str]
    weights: Tensor
    only: Tensor
    averages: bool
    first: Tensor
    duplicates: tuple[tuple[int, ...], ...]


def group_prompts(prompts: Sequence[Sequence[str]]) -> SharedPrompts:
    """Find the distinct prompts, and the classes that share all of theirs."""
    places = {text: place for place, text in enumerate(dict.fromkeys(text for own in prompts for text in own))}
    rows = torch.tensor([places[text] for own in prompts for text in own])
    columns = torch.tensor([label for label, own in enumerate(prompts) for _ in own])
    shares = torch.tensor([1 / len(own) for own in prompts for _ in own])
    same: dict[tuple[str, ...], list[int]] = {}
    for label, own in enumerate(prompts):
        same.setdefault(tuple(sorted(own)), []).append(label)
    return SharedPrompts(
        texts=list(places),
        weights=torch.zeros(len(places), len(prompts)).index_put_((rows, columns), shares, accumulate=True),
        only=torch.tensor([places[own[0]] for own in prompts]),
        averages=any(len(own) > 1 for own in prompts),
        first=torch.tensor([same[tuple(sorted(own))][0] for own in prompts]),
        duplicates=tuple(tuple(group) for group in same.values() if len(group) > 1),
    )


def check_prompt_count(loss: Any, classes: int, prompts: int) -> None:
    """Raise UniclError for several ``prompts`` per class above ``MANY_CLASSES`` classes.

    Each image is scored with each prompt. A loss whose scores are cheap or whose user agreed has ``many_prompts``.
    """
    if classes <= MANY_CLASSES or prompts < 2 * classes or getattr(loss, "many_prompts", False):
        return
    raise UniclError(
        f"{classes:,} classes in several templates are {prompts:,} prompts, and each image is scored with each of them",
        "give one template (--template 'a photo of a {}.', or data.templates in a recipe), or set "
        "loss.many_prompts=true where the loss has it",
    )


def shorten_names(names: Sequence[str]) -> str:
    return list_first(names, SHOWN)
