"""P×K batches: different classes, K rows of each, every row in turn, and the same batch at any step."""

from collections import Counter

import numpy as np
import pytest

from unicl_cli.core.class_batches import ClassBatches, JoinedBatches

LABELS = [np.array([0] * 7 + [1] * 3 + [2] * 5 + [-1] * 4), np.array([3] * 6 + [1] * 2 + [4])]


def drawn(batches, step):
    """The label of each row of a batch, and the rows as (stream, row)."""
    stream, row = batches.batch(step)
    places = list(zip(stream.tolist(), row.tolist(), strict=True))
    return [int(LABELS[s][r]) for s, r in places], places


@pytest.mark.parametrize(("classes", "rows"), [(1, 1), (2, 3), (5, 1), (3, 4)])
def test_a_batch_has_p_classes_of_k_rows(classes, rows):
    batches = ClassBatches(LABELS, classes, rows, 0)
    for step in range(40):
        labels, places = drawn(batches, step)
        counts = Counter(labels)
        assert set(counts.values()) == {rows}
        assert len(counts) == classes
        assert -1 not in counts
        for label in counts:
            own = Counter(place for place, of in zip(places, labels, strict=True) if of == label)
            assert max(own.values()) - min([*own.values(), max(own.values())]) <= 1
            size = sum(int((of == label).sum()) for of in LABELS)
            assert len(own) == min(rows, size), "a row repeats only where its class has too few"


def test_classes_and_the_rows_of_a_class_are_drawn_equally_often():
    batches = ClassBatches(LABELS, 2, 2, 3)
    met, classes = Counter(), Counter()
    for step in range(600):
        labels, places = drawn(batches, step)
        met.update(places)
        classes.update(labels)
    assert max(classes.values()) < 1.25 * min(classes.values())
    assert len(met) == 24, "every row with a label"
    sevens = [met[0, row] for row in range(7)]
    assert max(sevens) < 1.5 * min(sevens)


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = ClassBatches(LABELS, 2, 3, 0), ClassBatches(LABELS, 2, 3, 0)
    for step in range(7):
        one.batch(step)
    assert drawn(one, 10**9) == drawn(other, 10**9)
    assert drawn(one, 5) != drawn(ClassBatches(LABELS, 2, 3, 1), 5)
    assert drawn(one, 5)[1] == GOLDEN


GOLDEN = [(0, 5), (0, 3), (0, 2), (0, 9), (1, 6), (1, 7)]


def test_slots_mix_the_classes_and_lose_no_row():
    batches = ClassBatches(LABELS, 3, 2, 0)
    order = JoinedBatches(batches, None, 0)
    for step in range(5):
        stream, row = order.batch(step)
        assert sorted(zip(stream.tolist(), row.tolist(), strict=True)) == sorted(drawn(batches, step)[1])
    assert any(order.batch(step)[1].tolist() != batches.batch(step)[1].tolist() for step in range(5))


def test_more_classes_than_have_rows_are_refused():
    with pytest.raises(ValueError, match="6 classes a batch, and only 5 have rows"):
        ClassBatches(LABELS, 6, 1, 0)
