"""The short options of `unicl train` and the changes that they stand for."""

import pytest

from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.recipe.short_forms import expand_short_options

TWO = """
extends: quickstart
data: {train: [{corpus: a, weight: 2.0, split: dev}, {corpus: b}]}
eval: [{corpus: b, every: 7}, {corpus: other}, {corpus: a}]
"""


def test_a_corpus_takes_the_place_of_the_recipes_in_training_and_evaluation():
    recipe = load("my-labels", expand_short_options("my-labels", ["x: y, #1"], size=64, epochs=2.5, batch=32))
    assert [item.corpus for item in recipe.data.train] == [item.corpus for item in recipe.eval] == ["x: y, #1"]
    assert (recipe.data.image_size, recipe.epochs, recipe.batch.size) == (64, 2.5, 32)
    assert recipe.eval[0].every == load("my-labels").eval[0].every


def test_several_corpora_share_the_keys_of_the_only_entry_or_take_one_each(tmp_path):
    recipe = load("my-captions", expand_short_options("my-captions", ["x", "y"]))
    assert [item.corpus for item in recipe.data.train] == [item.corpus for item in recipe.eval] == ["x", "y"]
    file = tmp_path / "two.yaml"
    file.write_text(TWO)
    recipe = load(str(file), expand_short_options(str(file), ["x", "y"]))
    assert [(item.corpus, item.weight, item.split) for item in recipe.data.train] == [
        ("x", 2.0, "dev"),
        ("y", 1.0, "train"),
    ]
    assert [item.corpus for item in recipe.eval] == ["y", "other", "x"]
    with pytest.raises(UniclError, match="--data: given 1 times, but the recipe has 2 corpora"):
        expand_short_options(str(file), ["x"])


def test_a_length_replaces_that_of_the_recipe_and_numbers_stay_whole():
    assert load("quickstart", expand_short_options("quickstart", (), epochs=3.0)).steps is None
    assert expand_short_options("quickstart", (), batch=1_234_567) == [("batch.size", 1_234_567)]
    assert expand_short_options("quickstart", ()) == []
