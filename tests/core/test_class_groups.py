"""Groups of classes in the order of their first class, and the classes above one in a tree or a forest."""

import random

from hypothesis import example, given
from hypothesis import strategies as st

from unicl_cli.contracts import ClassName
from unicl_cli.core.class_groups import ancestors_of, groups_of, label_sets_of


def named(*places):
    """Classes with keys "0", "1", … from (group, number of the parent or None)."""
    return [
        ClassName(str(n), (str(n),), group, "" if parent is None else str(parent))
        for n, (group, parent) in enumerate(places)
    ]


def test_groups_stand_in_the_order_of_their_first_class():
    classes = named(("b", None), ("a", None), ("b", None), ("", None), ("a", None))
    assert groups_of(classes) == ("b", "a", "")
    sets = label_sets_of(classes, 4)
    assert (sets.width, sets.groups, sets.names) == (4, (0, 1, 0, 2, 1), ("b", "a", ""))
    assert groups_of([]) == ()
    assert label_sets_of([], 1).groups == ()


def test_a_class_without_parents_is_its_own_only_ancestor():
    assert ancestors_of(named(("", None), ("", None))) == ((0,), (1,))
    assert ancestors_of(named(("", None))) == ((0,),)
    assert ancestors_of([]) == ()


def test_a_single_root_that_all_classes_share_is_left_out_and_several_roots_are_kept():
    tree = named(("", None), ("", 0), ("", 1), ("", 0))
    assert ancestors_of(tree) == ((), (1,), (2, 1), (3,)), "nor is it a label of its own rows"
    forest = named(("", None), ("", 0), ("", None), ("", 2))
    assert ancestors_of(forest) == ((0,), (1, 0), (2,), (3, 2))


def test_a_chain_may_be_as_long_as_the_list():
    chain = named(("", None), *(("", n) for n in range(3000)))
    found = ancestors_of(chain)
    assert found[3000][:2] == (3000, 2999)
    assert len(found[3000]) == 3000


@example([0, 0, 1, 0], random.Random(1))
@given(st.lists(st.integers(0, 10), max_size=30), st.randoms(use_true_random=False))
def test_ancestors_follow_the_parents_whatever_the_order_of_the_classes(choices, rng):
    parents = {n: None if choice > n or choice == 10 else choice for n, choice in enumerate(choices)}
    parents = {n: None if parent == n else parent for n, parent in parents.items()}
    order = list(parents)
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    classes = named(*(("", None if parents[old] is None else place[parents[old]]) for old in order))
    roots = [old for old in order if parents[old] is None]
    for old in order:
        path, at = [], old
        while at is not None:
            path.append(at)
            at = parents[at]
        wanted = [place[n] for n in path if len(roots) > 1 or len(order) == 1 or n not in roots]
        assert ancestors_of(classes)[place[old]] == tuple(wanted)
