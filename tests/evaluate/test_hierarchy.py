"""Taxonomies in evaluation: roll-up, classes at ranks, distances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.contracts import ClassName
from unicl_cli.evaluate.hierarchy import (
    best_leaves,
    build_hierarchy,
    classes_at_ranks,
    distance_to_common,
    find_truths,
    roll_up,
)


def tree(*lines):
    """Classes from "key parent group"; - for no parent."""
    rows = [line.split() for line in lines]
    return tuple(ClassName(key, (key,), group, "" if parent == "-" else parent) for key, parent, group in rows)


ANIMALS = tree(
    *("animal - kingdom", "cat animal genus", "dog animal genus", "lion cat species", "tiger cat species"),
    *("wolf dog species", "red - colour", "grey - colour"),
)
GROUPS = (0, 1, 1, 2, 2, 2, 3, 3)


@st.composite
def taxonomies(draw):
    """A tree with all its ranks complete, and logits of rows."""
    widths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    level, classes = [0], [ClassName("0", ("0",), "rank0", "")]
    for depth, width in enumerate(widths, 1):
        children = [(parent, number) for parent in level for number in range(width)]
        level = list(range(len(classes), len(classes) + len(children)))
        classes += [
            ClassName(str(label), (str(label),), f"rank{depth}", str(parent))
            for label, (parent, _) in zip(level, children, strict=True)
        ]
    order = draw(st.permutations(classes))
    values = draw(st.lists(st.floats(-50, 50, width=32), min_size=len(classes), max_size=len(classes)))
    return tuple(order), torch.tensor([values], dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(taxonomies())
def test_a_rank_sums_to_one_and_no_child_is_likelier_than_its_parent(case):
    classes, logits = case
    taxonomy = build_hierarchy(classes)
    (found,) = roll_up(logits, taxonomy)
    for group in {item.group for item in classes}:
        own = [label for label, item in enumerate(classes) if item.group == group]
        assert float(found[own].sum()) == pytest.approx(1, abs=1e-12)
    for label, parent in enumerate(taxonomy.parents.tolist()):
        if parent >= 0:
            assert found[parent] >= found[label] - 1e-15


def test_a_leaf_high_up_counts_at_its_own_rank_and_above():
    classes = tree("root - a", "leaf root b", "inner root b", "x inner c", "y inner c")
    found = roll_up(torch.log(torch.tensor([[9.0, 0.5, 9.0, 0.3, 0.2]], dtype=torch.float64)), build_hierarchy(classes))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5, 0.5, 0.3, 0.2]], dtype=torch.float64))


def test_classes_outside_of_a_taxonomy_have_no_probability_there():
    taxonomy = build_hierarchy(ANIMALS)
    assert taxonomy.trees.tolist() == [0, 0, 0, 0, 0, 0, -1, -1]
    assert taxonomy.leaves.tolist() == [False] * 3 + [True] * 3 + [False] * 2
    found = roll_up(torch.tensor([[0, 0, 0, 1.0, 2.0, 3.0, 99.0, 0]]), taxonomy)
    assert found[0, 6:].tolist() == [0, 0]
    assert float(found[0, 0]) == pytest.approx(1)
    assert build_hierarchy(ANIMALS[6:]) is None


def test_taxonomies_that_share_no_rank_do_not_compete():
    two = (*ANIMALS[:6], *tree("plant - realm", "oak plant tree", "elm plant tree"))
    taxonomy = build_hierarchy(two)
    assert len(set(taxonomy.trees.tolist())) == 2
    found = roll_up(torch.zeros(1, 9), taxonomy)
    assert found[0, [0, 6]].tolist() == pytest.approx([1, 1])
    shared = build_hierarchy((*ANIMALS[:6], *tree("plant - kingdom", "oak plant species")))
    assert set(shared.trees.tolist()) == {0}
    assert roll_up(torch.zeros(1, 8), shared)[0, [0, 6]].tolist() == pytest.approx([0.75, 0.25])


def test_the_truth_is_the_deepest_class_unless_another_stands_beside_it():
    taxonomy = build_hierarchy(ANIMALS)
    truths = find_truths([[3], [1, 3], [0, 1, 3, 6], [1], [3, 4], [3, 2], [6], []], taxonomy)
    assert truths.tolist() == [3, 3, 3, 1, -1, -1, -1, -1]
    ranks = classes_at_ranks([3, 1, -1], GROUPS, taxonomy)
    assert {rank: own.tolist() for rank, own in ranks.items()} == {1: [1, 1, -1], 2: [3, -1, -1]}
    nested = tree("a - clade", "b a clade", "c b species", "d b species")
    assert classes_at_ranks([2], (0, 0, 1, 1), build_hierarchy(nested))[0].tolist() == [-1], "two of one rank"


@pytest.mark.parametrize(
    ("truth", "answer", "steps"), [(3, 3, 0), (3, 4, 1), (3, 5, 2), (1, 3, 0), (1, 5, 1), (3, 1, 1), (0, 5, 0)]
)
def test_the_distance_is_counted_from_the_truth_up(truth, answer, steps):
    assert distance_to_common(truth, answer, build_hierarchy(ANIMALS)) == steps


def test_two_roots_are_one_step_further_than_the_root():
    taxonomy = build_hierarchy((*ANIMALS[:6], *tree("plant - kingdom", "oak plant species")))
    assert distance_to_common(3, 7, taxonomy) == 3


def test_the_best_leaf_is_one_of_the_truths_own_taxonomy():
    two = (*ANIMALS[:6], *tree("plant - realm", "oak plant tree", "elm plant tree"))
    taxonomy = build_hierarchy(two)
    probabilities = torch.tensor([[1, 0.9, 0.1, 0.2, 0.3, 0.1, 1, 0.1, 0.9]]).expand(2, -1)
    assert best_leaves(probabilities, torch.tensor([3, 7]), taxonomy).tolist() == [4, 8]
