"""The corpora of a recipe are checked before they are read."""

import pytest

from unicl_cli.build.corpora import check_corpora
from unicl_cli.cli import main
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load


def small(corpus, *overrides):
    places = [f"data.train.0.corpus={corpus}", f"eval=[{{corpus: '{corpus}'}}]"]
    return load("digits-base", [*places, *overrides])


def fault(recipe):
    with pytest.raises(UniclError) as caught:
        check_corpora(recipe)
    return caught.value.message


def test_corpora_are_checked_without_reading_them(tmp_path):
    corpus = tmp_path / "c"
    assert fault(small(corpus)) == f"no finished corpus at {corpus}"
    corpus.mkdir()
    (corpus / "manifest.json").write_text("{")
    assert f"{corpus / 'manifest.json'}: damaged" in fault(small(corpus))
    made = tmp_path / "made"
    assert main(["prepare", "--labels", "digits?classes=0-1&limit=20", "-o", str(made), "-q"]) == 0
    check_corpora(small(made))
    assert "has no split 'tran'; did you mean 'train'?" in fault(small(made, "data.train.0.split=tran"))
