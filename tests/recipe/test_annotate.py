"""A copied recipe: equal to its source in every value, with all common keys and a comment above each."""

import pytest

from unicl_cli.errors import UniclError
from unicl_cli.recipe.annotate import COLUMNS, annotate
from unicl_cli.recipe.layers import builtin_names
from unicl_cli.recipe.load import load, load_text

COMMON = (
    "corpus:",
    "image_size:",
    "lr:",
    "warmup:",
    "size:",
    "epochs:",
    "every:",
    "precision:",
    "trackers:",
    "balance:",
)


@pytest.mark.parametrize("name", builtin_names())
def test_a_copy_is_the_recipe_in_every_value(name):
    text = annotate(name)
    assert load_text(text) == load(name)
    assert "extends:" not in text
    assert all(len(line) <= COLUMNS for line in text.splitlines() if line.lstrip().startswith("#"))


def test_every_key_of_a_copy_has_a_comment_above_it():
    lines = annotate("my-labels-and-captions").splitlines()
    begun = lines.index("") + 1
    for before, line in zip(lines[begun - 1 :], lines[begun:], strict=False):
        if not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), line
    for key in COMMON:
        assert any(line.strip().removeprefix("- ").startswith(key) for line in lines), key


def test_a_file_of_ones_own_keeps_its_opening_comment_and_values_that_look_like_others(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('# Für 3e-4\n# second\nextends: quickstart\nname: "1e5"\ndata: {templates: ["a {}: #1", "{}"]}\n')
    text = annotate(str(file))
    assert text.startswith("# Für 3e-4\n# second\n")
    assert load_text(text) == load(str(file))


def test_a_recipe_with_mistakes_is_not_copied(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: quickstart\nlr: 3\n")
    with pytest.raises(UniclError, match=r"did you mean 'optim\.lr'"):
        annotate(str(file))
