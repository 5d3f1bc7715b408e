"""The recipe's keys of P×K sampling: batches as asked for, and one line for each that cannot be filled."""

from collections import Counter

import pytest
import yaml

from unicl_cli.build.data import build_data, total_steps
from unicl_cli.build.optimizer import recipe_warnings
from unicl_cli.data.mix import LABELS, Draws
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import recipe_hash

MODEL = {
    "image": {"name": "cnn", "width": 8, "stages": 2},
    "text": {"name": "transformer", "width": 16, "layers": 1, "heads": 2},
    "embed_dim": 16,
}


@pytest.fixture
def recipe(digits):
    def make(*overrides):
        whole = {"data": {"train": [{"corpus": str(digits)}], "image_size": 16}, "model": MODEL, "steps": 4}
        return load_text(yaml.safe_dump(whole | {"batch": {"size": 12}}), "r", overrides)

    return make


def classes_of(data, step):
    """Return the number of rows of each class among the labelled rows of a batch, the largest first."""
    strands = data.mix.strands
    pairs = zip(*(column.tolist() for column in data.order.batch(step)), strict=True)
    found = Counter(int(strands[s].row_labels()[row]) for s, row in pairs if strands[s].kind == LABELS)
    return sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.mix.labels=1", "data.rows_per_class=3"], [3, 3, 3, 3]),
        (["data.mix.labels=1", "data.rows_per_class=2", "data.classes_per_batch=6"], [2] * 6),
        (["data.rows_per_class=2"], [2, 2, 2]),
        (["data.mix.labels=0.25", "data.rows_per_class=1"], [1, 1, 1]),
    ],
)
def test_a_batch_holds_k_rows_of_p_classes(recipe, overrides, expected):
    data = build_data(recipe(*overrides))
    assert all(classes_of(data, step) == expected for step in (0, 1, 7, 10**8))
    assert all(len(data.order.batch(step)[0]) == 12 for step in range(3))


def test_whole_steps_of_labels_alternate_with_captions(recipe):
    data = build_data(recipe("data.mix.by=step", "data.rows_per_class=4"))
    assert sorted(map(tuple, (classes_of(data, step) for step in range(2)))) == [(), (4, 4, 4)]


def test_all_processes_take_their_parts_of_the_same_batches(recipe):
    order = build_data(recipe("data.rows_per_class=2")).order
    whole = list(next(iter(Draws(order, 3, 4, 0, 1))))
    assert [at for rank in range(3) for at in next(iter(Draws(order, 3, 4, rank, 3)))] == whole


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.mix.labels=0", "data.rows_per_class=2"], "the mix has no rows with labels"),
        (["data.mix.labels=1", "data.rows_per_class=5"], "the 12 rows with labels of a batch are not a multiple of 5"),
        (["data.mix.labels=0.3", "data.rows_per_class=1"], "the 3.6 rows with labels of a batch are not a multiple"),
        (["data.rows_per_class=2", "data.classes_per_batch=4"], "4 classes of 2 rows are 8 rows, and a batch has 6"),
        (["data.mix.labels=1", "data.rows_per_class=1"], "1 row of 12 classes, and only 7 have rows"),
        (["data.classes_per_batch=4"], "needs data.rows_per_class"),
        (["data.rows_per_class=2", "data.balance=1"], "already draws all classes equally often"),
        (["data.rows_per_class=2", "data.train.0.weight=2"], "the weight of a corpus with labels has no effect"),
    ],
)
def test_batches_that_cannot_be_filled_are_refused(recipe, overrides, said):
    with pytest.raises(UniclError, match=said):
        build_data(recipe(*overrides))


def test_the_hint_names_the_batch_size_that_fits(recipe):
    with pytest.raises(UniclError) as caught:
        build_data(recipe("data.rows_per_class=2", "data.classes_per_batch=4"))
    assert "set batch.size=16" in caught.value.hint


def test_classes_with_too_few_rows_are_told(recipe):
    few = recipe("data.mix.labels=1", "data.rows_per_class=6", "data.train.0.limit=23")
    data = build_data(few)
    assert [line for line in recipe_warnings(few, data) if "with fewer than 6 rows" in line]
    assert classes_of(data, 0) == [6, 6]


def test_recipes_without_the_keys_keep_their_hash_and_epochs_count_rows(recipe):
    assert recipe_hash(recipe()) != recipe_hash(recipe("data.rows_per_class=2"))
    assert recipe_hash(recipe()) == recipe_hash(recipe("data.rows_per_class=null"))
    asked = recipe("data.mix.labels=1", "data.rows_per_class=2", "data.train.0.limit=24", "steps=null", "epochs=2")
    assert total_steps(asked, build_data(asked)) == 4
