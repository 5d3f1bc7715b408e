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
    assert fault(small(corpus)) == f"data.train.0.corpus: no finished corpus at {corpus}"
    corpus.mkdir()
    (corpus / "manifest.json").write_text("{")
    assert f"{corpus / 'manifest.json'}: damaged" in fault(small(corpus))
    made = tmp_path / "made"
    assert main(["prepare", "--labels", "digits?classes=0-1&limit=20", "-o", str(made), "-q"]) == 0
    check_corpora(small(made))
    assert "has no split 'tran'; did you mean 'train'?" in fault(small(made, "data.train.0.split=tran"))
    assert fault(small(made, "data.train.0.split=tran")).startswith("data.train.0.corpus: corpus ")
    with pytest.raises(UniclError, match=r"eval\.0\.corpus: corpus .* has no split 'dev'") as caught:
        check_corpora(small(made, f"eval=[{{corpus: '{made}', split: dev}}]"))
    assert "train" in str(caught.value.hint)
    assert "--holdout 0.2" in str(caught.value.hint)
    assert "eval=[]" in str(caught.value.hint)
