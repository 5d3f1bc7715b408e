"""The candidates of a classification: the classes to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.inference.scorer import shorten_names
from unicl_cli.jobs.evaluators.options import Asked


class Candidates(NamedTuple):
    """``classes`` are those of the corpus at their numbers, then further ones; ``allowed`` marks the candidates."""

    classes: tuple[ClassName, ...]
    allowed: tuple[bool, ...]
    in_corpus: int
    warnings: tuple[str, ...] = ()

    @property
    def further(self) -> list[str]:
        """The names of the candidates that are not classes of the corpus."""
        return [each.names[0] for each in self.classes[self.in_corpus :]]


def choose_candidates(corpus: Sequence[ClassName], model: Sequence[ClassName], asked: Asked) -> Candidates:
    """Return the candidates for rows of a corpus with these classes, answered by a model that has learned those.

    A class of the model is one of the corpus if their keys are equal, or if they share a name, whatever its case. If
    all classes of the corpus are the model's, only classes of the same groups are further candidates: an image is both
    "red" and "circle", and what is above its class in a taxonomy is true of it as well. Raise UniclError if a list
    names no class of the corpus: no row could be right.
    """
    further = other_classes(corpus, model)
    if asked == "corpus":
        return Candidates(tuple(corpus), (True,) * len(corpus), len(corpus))
    if asked == "all":
        classes = (*corpus, *same_groups(further, model, len(corpus)))
        return Candidates(classes, (True,) * len(classes), len(corpus), warn_about_keys(corpus, model))
    named = {name.casefold() for name in asked}
    chosen = [bool(words_of(each) & named) for each in corpus]
    if not any(chosen):
        raise UniclError(
            f"--candidates {', '.join(asked)}: none of them is a class of the corpus",
            f"name classes such as {shorten_names([each.names[0] for each in corpus])}",
        )
    known = [each for each in further if words_of(each) & named]
    met = {word for each in (*corpus, *known) for word in words_of(each)}
    new = [ClassName(name, (name,)) for name in asked if name.casefold() not in met]
    more = (*known, *new)
    return Candidates((*corpus, *more), (*chosen, *(True for _ in more)), len(corpus))


def other_classes(corpus: Sequence[ClassName], model: Sequence[ClassName]) -> list[ClassName]:
    """Return the classes of the model that are not classes of the corpus."""
    keys = {each.key for each in corpus}
    names = {name.casefold() for each in corpus for name in each.names}
    return [each for each in model if each.key not in keys and not names & {name.casefold() for name in each.names}]


def same_groups(further: Sequence[ClassName], model: Sequence[ClassName], in_corpus: int) -> list[ClassName]:
    """Return those of the ``further`` classes in a group of the corpus; all if the model lacks one of its classes."""
    keys = {each.key for each in further}
    known = [each for each in model if each.key not in keys]
    groups = {each.group for each in known}
    return [each for each in further if each.group in groups or len(known) < in_corpus]


def words_of(item: ClassName) -> set[str]:
    """Return the key and the names of a class, without case."""
    return {word.casefold() for word in (item.key, *item.names)}


def warn_about_keys(corpus: Sequence[ClassName], model: Sequence[ClassName]) -> tuple[str, ...]:
    """Return a warning about classes that have one key in corpus and model, but no common name."""
    known = {each.key: each for each in model}
    pairs = [(each, known[each.key]) for each in corpus if each.key in known]
    apart = [
        f"{mine.key} is '{mine.names[0]}' here and '{theirs.names[0]}' there"
        for mine, theirs in pairs
        if not {name.casefold() for name in mine.names} & {name.casefold() for name in theirs.names}
    ]
    if not apart:
        return ()
    return (f"{len(apart)} classes have the key of a class of the model, but another name: {shorten_names(apart)}",)
