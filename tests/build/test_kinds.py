"""Kinds of rows that would vanish from a training are refused or reported with their counts."""

import json

import pytest
from launching import here

from unicl_cli.build.data import build_data
from unicl_cli.build.optimizer import recipe_warnings
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.plan.request import PrepareOptions, PrepareRequest
from unicl_cli.jobs.prepare.prepare import prepare
from unicl_cli.recipe.load import load_text


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """``corpora[kind]``: a corpus of 12 labels, of 80 captions, or of both."""
    folder = tmp_path_factory.mktemp("kinds")
    sources = {"labels": ("digits?limit=12",), "captions": ("digits?limit=80",)}
    made = {"labels": ("labels",), "captions": ("captions",), "both": ("labels", "captions")}
    for name, kinds in made.items():
        given = {kind: sources[kind] if kind in kinds else () for kind in sources}
        prepare(PrepareRequest(**given, images=(), out=folder / name, options=PrepareOptions(holdout=0.0)))
    return {name: folder / name for name in made}


def recipe(*train, mix=None, size=16, steps=20, **changes):
    data = {"train": [{**item, "corpus": str(item["corpus"])} for item in train], "mix": mix or {}}
    model = {"image": "cnn", "text": "cbow"}
    return load_text(json.dumps({"data": data, "model": model, "batch": {"size": size}, "steps": steps} | changes))


def refusal(*train, **changes):
    with pytest.raises(UniclError) as caught:
        build_data(recipe(*train, **changes))
    return f"{caught.value.message}; {caught.value.hint}"


def kinds(*train, **changes):
    return {strand.kind: strand.size for strand in build_data(recipe(*train, **changes)).mix.strands}


def test_a_share_that_leaves_no_row_of_a_kind_is_refused_with_its_count(corpora):
    said = refusal({"corpus": corpora["both"], "fraction": 0.01})
    assert said.startswith(f"data.train.0.fraction: 0.01 of 12 labels rows of {corpora['both']} leaves none")
    assert "data.mix.labels=0" in said
    said = refusal({"corpus": corpora["labels"]}, {"corpus": corpora["captions"], "fraction": 0.0001})
    assert said.startswith("data.train.1.fraction: 0.0001 of 80 captions rows")
    assert "data.mix.labels=1" in said


def test_a_kind_that_the_mix_leaves_out_on_purpose_may_be_gone(corpora):
    assert kinds({"corpus": corpora["both"], "fraction": 0.1}, mix={"labels": 0}).keys() == {"captions"}
    assert kinds({"corpus": corpora["both"], "limit": 1}, mix={"labels": "auto"}) == {"labels": 1, "captions": 1}


@pytest.mark.parametrize("by", ["sample", "step"])
@pytest.mark.parametrize("kind", ["labels", "captions"])
def test_a_share_of_a_kind_that_is_not_there_is_refused(corpora, kind, by):
    said = refusal({"corpus": corpora[kind]}, mix={"labels": 0.5, "by": by})
    assert said.startswith(f"data.mix.labels is 0.5, but the corpora hold only {kind}; set data.mix.labels=auto")
    assert kinds({"corpus": corpora[kind]}, mix={"by": by}).keys() == {kind}, "nothing was asked"


def warnings(*train, **changes):
    asked = recipe(*train, **changes)
    return [line for line in recipe_warnings(asked, build_data(asked)) if line.startswith("data.train")]


@pytest.mark.parametrize("by", ["sample", "step"])
def test_rows_of_which_the_whole_run_draws_none_are_told(corpora, by):
    both = {"corpus": corpora["both"]}
    (said,) = warnings(both, mix={"labels": 0.001, "by": by})
    assert said.startswith(f"data.train: in 20 steps, none of 12 labels rows of {corpora['both']} is drawn")
    assert warnings(both, mix={"labels": 0.5, "by": by}) == []
    few = {"corpus": corpora["captions"], "weight": 1e-9}
    (said,) = warnings({"corpus": corpora["both"]}, few)
    assert f"none of 80 captions rows of {corpora['captions']}" in said


def loss_warnings(corpus, *, text="mixed", **changes):
    asked = recipe({"corpus": corpus}, **changes)
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"text_for_labelled": text})})
    return [line for line in recipe_warnings(asked, build_data(asked)) if line.startswith("loss")]


def test_a_part_of_the_loss_that_no_row_trains_is_told(corpora):
    (said,) = loss_warnings(corpora["both"], mix={"labels": 1}, loss="multitask")
    assert "its text tower is never trained" in said
    (said,) = loss_warnings(corpora["both"], mix={"labels": 0}, loss="multitask")
    assert "its head of classes is never trained" in said
    assert loss_warnings(corpora["both"], loss="multitask") == []


def test_captions_of_labelled_rows_that_a_recipe_never_shows_are_told(corpora, tmp_path):
    own, source = {"name": "unicl", "own_text": 0.3}, "shapes?captions=true&count=12&test=1&size=16"
    here("prepare", "--labels", source, "-o", tmp_path / "c", "--holdout", "0", "-q")
    (said,) = loss_warnings(str(tmp_path / "c"), loss=own, text="prompt")
    assert "data.text_for_labelled=prompt shows none" in said
    assert loss_warnings(str(tmp_path / "c"), loss=own) == []
    assert loss_warnings(corpora["both"], loss=own, text="prompt") == [], "there are none to show"
