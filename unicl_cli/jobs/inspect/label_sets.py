"""Facts of label sets: their sizes, the groups that rows know, labels that meet, and rows above the leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, triu

from unicl_cli.contracts import ClassName
from unicl_cli.core.class_groups import find_depths, find_parents, label_sets_of
from unicl_cli.evaluator_contracts import RowSets

Ints = NDArray[np.int64]
MOST_PAIRED = 2000
"""Classes whose pairs are counted, the most frequent ones."""
MOST_PAIRS = 500_000_000
"""Pairs of labels that are counted; of more, those of rows spread evenly over the split."""


def set_facts(classes: Sequence[ClassName], sets: RowSets, most: int) -> dict[str, Any]:
    """Return the facts of the label sets of a split's label rows; ``most`` pairs of labels are listed."""
    counts = np.diff(sets.ends)
    labels, rows = np.unique(counts, return_counts=True)
    facts: dict[str, Any] = {
        "rows": len(counts),
        "labels": len(sets.values),
        "sizes": [{"labels": a, "n": n} for a, n in zip(labels.tolist(), rows.tolist(), strict=True)],
        "groups": group_facts(classes, sets),
        "co_occurrence": count_meetings(classes, sets, most),
    }
    if any(item.parent for item in classes):
        facts["taxonomy"] = taxonomy_facts(classes, sets)
    return facts


def group_facts(classes: Sequence[ClassName], sets: RowSets) -> list[dict[str, Any]]:
    """Return for each group its classes, the rows annotated for it, those with a label of it, and its labels."""
    named = label_sets_of(classes, 1)
    numbers = np.array(named.groups, np.int64)
    row, group = _rows_of(sets), numbers[sets.values]
    distinct = np.unique(row * len(named.names) + group) % len(named.names)
    columns = (np.bincount(of, minlength=len(named.names)).tolist() for of in (numbers, distinct, group))
    return [
        {"group": name, "classes": size, "known": int((sets.known >> bit & 1).sum()), "rows": rows, "labels": labels}
        for bit, (name, size, rows, labels) in enumerate(zip(named.names, *columns, strict=True))
    ]


def _rows_of(sets: RowSets) -> Ints:
    """Return the row of each label."""
    return np.repeat(np.arange(len(sets.ends) - 1), np.diff(sets.ends))


def count_meetings(classes: Sequence[ClassName], sets: RowSets, most: int) -> dict[str, Any]:
    """Return the pairs of labels that most rows have together, with their lift.

    Lift is the share of rows with both over the product of the shares of each, among rows that know both groups.
    """
    counts = np.bincount(sets.values, minlength=len(classes))
    chosen = np.argsort(-counts, kind="stable")[:MOST_PAIRED]
    chosen = np.sort(chosen[counts[chosen] > 0])
    stride = max(1, -(-int((np.diff(sets.ends) ** 2).sum()) // MOST_PAIRS))
    taken = np.arange(0, len(sets.ends) - 1, stride)
    place = np.full(len(classes), -1)
    place[chosen] = np.arange(len(chosen))
    row, column = _rows_of(sets), place[sets.values]
    kept = column >= 0
    shape = (len(sets.ends) - 1, len(chosen))
    has: Any = csr_matrix((np.ones(kept.sum(), np.int64), (row[kept], column[kept])), shape)[taken]
    pairs: Any = triu(has.T @ has, 1).tocoo()
    order = np.lexsort((pairs.col, pairs.row, -pairs.data))[:most]
    groups = np.array(label_sets_of(classes, 1).groups, np.int64)[chosen]
    known = np.stack([sets.known[taken] >> bit & 1 for bit in range(int(groups.max(initial=0)) + 1)], 1)
    alone, together = has.T @ known, known.T @ known  # rows with a class that know a group, rows that know both
    listed: list[dict[str, Any]] = []
    for a, b, n in zip(*(x[order].tolist() for x in (pairs.row, pairs.col, pairs.data)), strict=True):
        lift = n * together[groups[a], groups[b]] / (alone[a, groups[b]] * alone[b, groups[a]])
        both = [classes[int(chosen[at])] for at in (a, b)]
        names, keys = [item.names[0] for item in both], [item.key for item in both]
        listed.append({"classes": names, "keys": keys, "n": n, "lift": float(lift)})
    return {"rows": len(taken), "classes": len(chosen), "pairs": listed}


def taxonomy_facts(classes: Sequence[ClassName], sets: RowSets) -> dict[str, Any]:
    """Return the size and depth of the taxonomy, its ranks, and the rows that lack one of them.

    These rows are labelled above a leaf, so that their deeper ranks are not known.
    """
    depth = {item.key: above + 1 for item, above in zip(classes, find_depths(find_parents(classes)), strict=True)}
    inner = {item.parent for item in classes if item.parent}
    in_tree = np.array([bool(item.parent) or item.key in inner for item in classes])
    named = label_sets_of(classes, 1)
    trees = [item for item, inside in zip(classes, in_tree.tolist(), strict=True) if inside]
    highest: dict[str, int] = {}
    for item in trees:
        highest[item.group] = min(depth[item.key], highest.get(item.group, depth[item.key]))
    ranks = sorted(highest, key=lambda rank: highest[rank])
    bits = sum(1 << named.names.index(name) for name in ranks)
    placed = np.unique(_rows_of(sets)[in_tree[sets.values]])
    return {
        "classes": int(in_tree.sum()),
        "roots": sum(not item.parent for item in trees),
        "depth": max(depth[item.key] for item in trees),
        "ranks": ranks,
        "inner": len(inner),
        "rows": len(placed),
        "rows_above_leaves": int((sets.known[placed] & bits != bits).sum()),
    }
