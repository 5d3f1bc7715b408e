"""The evaluated classes that a model was trained on with labels: on such classes no result is zero-shot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from unicl_cli.contracts import ClassName
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.data.mix import LABELS, select_rows
from unicl_cli.errors import UniclError
from unicl_cli.recipe.schema import Recipe, TrainData

_SYNSET = re.compile(r"n\d{8}")


class TrainedClasses(NamedTuple):
    """Of the ``classes`` with rows in a split, ``trained`` have training rows with their label.

    ``unchecked`` are training corpora that cannot be read any more: their classes are not known.
    """

    trained: int
    classes: int
    unchecked: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return the entry of the document."""
        return {**self._asdict(), "unchecked": list(self.unchecked)}


def find_trained_classes(recipes: Sequence[Recipe], corpus: Corpus, split: str) -> TrainedClasses | None:
    """Count the classes of a split that the trainings of ``recipes`` had labels for.

    None if it says nothing: no recipe is known, or the split has no labels. Two classes are one if their keys are
    equal, or if they share a name, whatever its case; of two WordNet ids the keys alone decide.
    """
    if not recipes or LABELS not in corpus.kinds(split):
        return None
    present = _classes_of_rows(corpus, split, None)
    keys: set[str] = set()
    names: dict[str, set[bool]] = {}
    unchecked: dict[str, None] = {}
    for recipe in recipes:
        for item in recipe.data.train if recipe.data.mix.labels != 0 else ():
            try:
                trained = _trained_classes(item)
            except UniclError:
                unchecked[item.corpus] = None
                continue
            keys.update(each.key for each in trained)
            for each in trained:
                for name in each.names:
                    names.setdefault(name.casefold(), set()).add(_is_synset(each))
    found = [each for each in present if each.key in keys or _shares_name(each, names)]
    return TrainedClasses(len(found), len(present), tuple(unchecked))


def _trained_classes(item: TrainData) -> list[ClassName]:
    corpus = open_corpus(item.corpus)
    return _classes_of_rows(corpus, item.split, item) if LABELS in corpus.kinds(item.split) else []


def _classes_of_rows(corpus: Corpus, split: str, item: TrainData | None) -> list[ClassName]:
    """Return the classes that rows of a split have; of the rows that ``item`` chooses, if it is given."""
    table = corpus.table(split, LABELS)
    sets = table.label_sets()
    labels = sets.values
    rows = None if item is None else select_rows(table, 1.0 if item.fraction is None else item.fraction, item.limit)
    if rows is not None:
        chosen = np.zeros(len(table), np.bool_)
        chosen[rows] = True
        labels = labels[np.repeat(chosen, np.diff(sets.ends))]
    return [corpus.classes[number] for number in np.unique(labels).tolist()]


def _is_synset(item: ClassName) -> bool:
    return _SYNSET.fullmatch(item.key) is not None


def _shares_name(item: ClassName, names: dict[str, set[bool]]) -> bool:
    """Return whether a trained class has a name of this one, unless both are WordNet ids."""
    kinds: Iterable[set[bool]] = (names.get(name.casefold(), set()) for name in item.names)
    return any(kind - {True} if _is_synset(item) else kind for kind in kinds)
