"""The questions that a list of classes answers: one for each group, and one for each taxonomy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.core.class_groups import groups_of
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.evaluate.hierarchy import NO_PARENT, Hierarchy, build_hierarchy
from unicl_cli.formats import list_first

BETWEEN = " > "
"""Stands between the classes of a path down a taxonomy."""


class Question(NamedTuple):
    """A group of classes that compete with each other, or a taxonomy, whose leaves do.

    ``shown`` and ``competing``, int64, are numbers of classes: those that may be answered, and those whose
    probabilities add up to 1. ``taxonomy`` is None for a group. ``has_paths``: each answer comes with the classes above
    it but ``top``, the only root, which says nothing about an image.
    """

    name: str
    shown: Tensor
    competing: Tensor
    taxonomy: Hierarchy | None = None
    has_paths: bool = False
    top: int = NO_PARENT

    def path(self, label: int) -> list[int]:
        """Return the classes above ``label``, the highest first, and itself."""
        if self.taxonomy is None:
            return [label]
        return [number for number in reversed(self.taxonomy.path(label)) if number != self.top] or [label]


class Wanted(NamedTuple):
    """The ``groups`` that are asked about, and the ``rank`` of a taxonomy; neither: all questions."""

    groups: tuple[str, ...] = ()
    rank: str | None = None

    @property
    def is_all(self) -> bool:
        return not self.groups and self.rank is None


def split_questions(classes: Sequence[ClassName], wanted: Wanted) -> list[Question]:
    """Return the questions that are wanted, in the order of their first classes.

    Raises UniclError for a group or a rank that these classes do not have.
    """
    taxonomy = build_hierarchy(classes)
    trees = [-1] * len(classes) if taxonomy is None else taxonomy.trees.tolist()
    ranks = list(dict.fromkeys(item.group for item, tree in zip(classes, trees, strict=True) if tree >= 0))
    attributes = [name for name in groups_of(classes) if name not in ranks]
    check_wanted(wanted, attributes, ranks)
    found = [
        Question(name, own, own)
        for name in attributes
        if wanted.is_all or name in wanted.groups
        for own in [numbers_of(item.group == name for item in classes)]
    ]
    if taxonomy is not None:
        found += [
            ask_taxonomy(classes, taxonomy, tree, wanted.rank)
            for tree in range(max(trees) + 1)
            if wanted.is_all or any(trees[place] == tree for place in places_of(classes, wanted.rank))
        ]
    return sorted(found, key=lambda question: int(question.competing[0]))


def ask_taxonomy(classes: Sequence[ClassName], taxonomy: Hierarchy, tree: int, rank: str | None) -> Question:
    """Return the question about the leaves of a taxonomy, or about its classes of one rank."""
    own = taxonomy.trees == tree
    leaves = (own & taxonomy.leaves).nonzero()[:, 0]
    if rank is not None:
        return Question(rank, torch.tensor(places_of(classes, rank)), leaves, taxonomy)
    members: list[int] = own.nonzero()[:, 0].tolist()
    members.sort(key=taxonomy.depths.tolist().__getitem__)
    roots = [number for number in members if int(taxonomy.parents[number]) == NO_PARENT]
    top = roots[0] if len(roots) == 1 else NO_PARENT
    names = dict.fromkeys(classes[number].group for number in members if number != top)
    return Question(BETWEEN.join(names), leaves, leaves, taxonomy, has_paths=True, top=top)


def numbers_of(marks: Iterable[bool]) -> Tensor:
    return torch.tensor([number for number, mark in enumerate(marks) if mark], dtype=torch.int64)


def places_of(classes: Sequence[ClassName], group: str | None) -> list[int]:
    return [number for number, item in enumerate(classes) if item.group == group]


def select_classes(classes: Sequence[ClassName], wanted: Wanted, *, is_multi: bool) -> tuple[ClassName, ...]:
    """Return the classes that the questions need: with ``is_multi`` those that are shown, else whole taxonomies."""
    if wanted.is_all:
        return tuple(classes)
    needed: set[int] = set()
    for question in split_questions(classes, wanted):
        needed |= set(question.shown.tolist())
        if question.taxonomy is not None and not is_multi:
            taxonomy = question.taxonomy
            needed |= set((taxonomy.trees == taxonomy.trees[question.competing[0]]).nonzero()[:, 0].tolist())
    return tuple(classes[number] for number in sorted(needed))


def check_wanted(wanted: Wanted, attributes: Sequence[str], ranks: Sequence[str]) -> None:
    """Raise UniclError unless the groups and the rank that are wanted are among those of the classes."""
    for name in wanted.groups:
        if name in ranks:
            raise UniclError(f"--group {name}: is a rank of a taxonomy", f"use --rank {name}")
        if name not in attributes:
            raise missing_name("--group", "group", name, attributes)
    if wanted.rank is not None and wanted.rank not in ranks:
        if wanted.rank in attributes:
            raise UniclError(f"--rank {wanted.rank}: is not a rank of a taxonomy", f"use --group {wanted.rank}")
        raise missing_name("--rank", "rank", wanted.rank, ranks)


def missing_name(option: str, noun: str, name: str, names: Sequence[str]) -> UniclError:
    """Return the error for a group or rank that the classes do not have."""
    known = [each for each in names if each]
    if not known:
        return UniclError(f"{option} {name}: these classes have no {noun}s", f"leave {option} out")
    return UniclError(f"{option} {name}: no such {noun}{did_you_mean(name, known)}", f"choose from {list_first(known)}")
