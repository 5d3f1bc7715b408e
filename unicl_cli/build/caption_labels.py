"""Recipe to the handling of class names in captions (`data.caption_labels`)."""

from collections.abc import Sequence

from unicl_cli.binding import takes
from unicl_cli.contracts import ClassName
from unicl_cli.data.caption_labels import CaptionLabels
from unicl_cli.data.mix import CAPTIONS, ClassPlace, MixedCorpora, Strand
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of
from unicl_cli.recipe.schema import Recipe
from unicl_cli.registry import names

TRIED = 1000
"""Rows of each corpus of captions whose texts are read before a training."""


def check_loss(recipe: Recipe, parameter: str, problem: str, otherwise: str = "") -> None:
    """Raise UniclError with this ``problem`` unless the loss asks the builder for ``parameter``; name those that do."""
    if not takes("losses", recipe.loss.name, parameter):
        able = [name for name in names("losses") if takes("losses", name, parameter)]
        raise UniclError(problem, f"use one of {', '.join(able)}{otherwise}")


def build_naming(
    recipe: Recipe, strands: Sequence[Strand], classes: Sequence[ClassName], places: Sequence[ClassPlace]
) -> CaptionLabels | None:
    """Return the reader of class names in captions; None if the recipe ignores them.

    Raises UniclError where they cannot have one.
    """
    mode, loss = recipe.data.caption_labels, recipe.loss.name
    if mode == "off":
        return None
    off, key = "or set data.caption_labels=off", f"data.caption_labels={mode}"
    if not classes or all(strand.kind != CAPTIONS for strand in strands):
        what = "rows with captions alone" if classes else "classes"
        raise UniclError(f"{key}: the mix has no {what}", f"add a corpus of labels and one of captions, {off}")
    if mode == "positive":
        return CaptionLabels(classes, merge_above(places, len(classes)), labels=True)
    check_loss(recipe, "hides_named", f"{key}: the loss '{loss}' cannot hide captions from rows", f", {off}")
    if recipe.data.caption_targets == "text_hash":
        problem = "the same caption may be a positive of a row and hidden from it"
        raise UniclError(f"{key}: with data.caption_targets=text_hash, {problem}", f"use unique, {off}")
    return CaptionLabels(classes, (), labels=False)


def naming_warnings(recipe: Recipe, mix: MixedCorpora) -> list[str]:
    """Return a warning if none of the captions that are tried names a class."""
    naming = mix.texts.naming
    if naming is None:
        return []
    captions = [strand for strand in mix.strands if strand.kind == CAPTIONS]
    tried = list(MixedCorpora(captions, mix.texts).some_texts(TRIED))
    if any(naming.named_in(text) for text in tried):
        return []
    mode, count = recipe.data.caption_labels, count_of(len(tried), "caption")
    return [f"data.caption_labels={mode}: none of {count} tried names a class: see unicl inspect, or set it to off"]


def merge_above(places: Sequence[ClassPlace], count: int) -> list[list[int]]:
    """Return for each of ``count`` classes of the mix the labels of a row of it: itself, and classes above it.

    They are those of any corpus. A root that all classes of a taxonomy share is none.
    """
    found = [set[int]() for _ in range(count)]
    for place in places:
        for number, own in enumerate(place.labels.tolist()):
            found[own] |= set(place.labels[list(place.above[number])].tolist()) if place.above else {own}
    return [sorted(each) for each in found]
