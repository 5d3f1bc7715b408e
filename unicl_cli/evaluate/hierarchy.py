"""Taxonomies in evaluation: probabilities of leaves summed up the tree, accuracy per rank, distances in the tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.core.class_groups import NO_PARENT, find_depths, find_parents


class Hierarchy(NamedTuple):
    """Trees over C classes. ``trees``, int64 (C,), numbers the taxonomy of each class; -1: it is in none.

    Groups of classes (ranks) that a parent links belong to one taxonomy, which may have several roots.
    """

    parents: Tensor
    """int64 (C,): NO_PARENT for a root, and for a class outside."""
    depths: Tensor
    """int64 (C,): 0 for a root."""
    trees: Tensor
    leaves: Tensor
    """bool (C,): the classes of a taxonomy that are not the parent of any."""

    def path(self, label: int) -> list[int]:
        """Return a class and the classes above it, up to its root."""
        found = [label]
        while (above := int(self.parents[found[-1]])) != NO_PARENT:
            found.append(above)
        return found


def build_hierarchy(classes: Sequence[ClassName]) -> Hierarchy | None:
    """Return the taxonomies of these classes; None if no class has a parent."""
    parents = find_parents(classes)
    inner = {parent for parent in parents if parent != NO_PARENT}
    if not inner:
        return None
    linked = {item.group: item.group for item in classes}

    def first_of(group: str) -> str:
        while linked[group] != group:
            group = linked[group]
        return group

    for item, parent in zip(classes, parents, strict=True):
        if parent != NO_PARENT:
            linked[first_of(item.group)] = first_of(classes[parent].group)
    with_parents = {first_of(classes[parent].group) for parent in inner}
    order = {group: number for number, group in enumerate(sorted(with_parents))}
    trees = torch.tensor([order.get(first_of(item.group), -1) for item in classes])
    leaves = torch.tensor([number not in inner for number in range(len(classes))]) & (trees >= 0)
    return Hierarchy(torch.tensor(parents), torch.tensor(find_depths(parents)), trees, leaves)


def roll_up(logits: Tensor, taxonomy: Hierarchy) -> Tensor:
    """Return the probability of each class of a taxonomy, (b, C) -> (b, C); 0 outside.

    A softmax over the leaves of each taxonomy, summed up the tree: a parent has what its children have together, so it
    never contradicts them. A class with logit -inf has none; where all leaves have, the row is NaN.
    """
    found = torch.zeros_like(logits)
    for tree in range(int(taxonomy.trees.max()) + 1):
        leaves = (taxonomy.leaves & (taxonomy.trees == tree)).nonzero()[:, 0]
        found[:, leaves] = logits[:, leaves].softmax(1)
    return sum_up(found, taxonomy)


def sum_up(probabilities: Tensor, taxonomy: Hierarchy) -> Tensor:
    """Add the probability of each class to those above it: leaves have theirs, (b, C) -> (b, C)."""
    found = probabilities.clone()
    for depth in range(int(taxonomy.depths.max()), 0, -1):
        own = (taxonomy.depths == depth).nonzero()[:, 0]
        found.index_add_(1, taxonomy.parents[own], found[:, own])
    return found


def find_truths(labels: Sequence[Sequence[int]], taxonomy: Hierarchy) -> Tensor:
    """Return the deepest class of each row in its taxonomy, int64 (n,); -1 for none, or for several branches.

    ``labels`` are those of each row, with or without the classes above them.
    """
    trees, depths = taxonomy.trees.tolist(), taxonomy.depths.tolist()
    truths: list[int] = []
    for own in labels:
        inside = [label for label in own if trees[label] >= 0]
        deepest = max(inside, key=depths.__getitem__, default=-1)
        truths.append(deepest if deepest >= 0 and set(inside) <= set(taxonomy.path(deepest)) else -1)
    return torch.tensor(truths, dtype=torch.int64)


def classes_at_ranks(truths: Sequence[int], groups: Sequence[int], taxonomy: Hierarchy) -> dict[int, Tensor]:
    """Return for each rank, a group of two classes or more, the class of each truth there, int64 (n,).

    It is -1 where a truth (-1 itself, or a class high up) has none, or two of one rank above each other.
    """
    sizes = Counter(group for group, tree in zip(groups, taxonomy.trees.tolist(), strict=True) if tree >= 0)
    ranks = {group: torch.full((len(truths),), -1) for group in sorted(sizes) if sizes[group] > 1}
    for row, truth in enumerate(truths):
        path = taxonomy.path(truth) if truth >= 0 else []
        met = Counter(groups[label] for label in path)
        for label in path:
            if met[groups[label]] == 1 and groups[label] in ranks:
                ranks[groups[label]][row] = label
    return ranks


def distance_to_common(truth: int, answer: int, taxonomy: Hierarchy) -> int:
    """Return the steps from ``truth`` up to the lowest class that is above it and ``answer``, or one of the two.

    An answer at or below the truth has 0. Two roots count as if one more class were above them.
    """
    above = set(taxonomy.path(answer))
    path = taxonomy.path(truth)
    return next((steps for steps, label in enumerate(path) if label in above), len(path))


def best_leaves(probabilities: Tensor, truths: Tensor, taxonomy: Hierarchy) -> Tensor:
    """Return the likeliest leaf of the taxonomy of each truth, (b, C), (b,) -> (b,); the lowest of equal ones."""
    allowed = taxonomy.leaves & (taxonomy.trees == taxonomy.trees[truths][:, None])
    return probabilities.masked_fill(~allowed, -1.0).argmax(1)
