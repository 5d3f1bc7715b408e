"""Evaluated images that were trained on are counted, also across corpora and through start weights."""

import io
import json
import random

import pytest
from PIL import Image
from toys import prepared, put

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.overlap import find_left_out, find_overlap, recipes_of
from unicl_cli.recipe.load import load

SMALL = (
    "model: {image: {name: cnn, width: 8, stages: 2}, text: {name: cbow, width: 16}, embed_dim: 16}\n"
    "batch: {size: 8}\nsteps: 1\nschedule: {warmup: 0}\n"
)


def picture(seed):
    out = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def corpora(tmp_path, capsys, monkeypatch):
    """``labels``: images 0 to 39 of two classes; ``captions``: images 30 to 49 under other names, 10 of them test."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "f", {f"{'ab'[k % 2]}/{k}.png": picture(k) for k in range(40)})
    put(tmp_path / "g", {f"x{k}.png": picture(k) for k in range(30, 50)})
    lines = [f"g/x{k}.png,thing number {k},{'test' if k < 35 or k > 44 else 'train'}\n" for k in range(30, 50)]
    (tmp_path / "l.csv").write_text("image,caption,split\n" + "".join(lines))
    prepared(capsys, "--labels", "f", "-o", "labels", "--holdout", 0)
    prepared(capsys, "--captions", "l.csv", "-o", "captions")
    return tmp_path


def recipe(name, data, more=""):
    (name.parent).mkdir(exist_ok=True)
    name.write_text(f"name: r\ndata: {{image_size: 8, {data}}}\n{SMALL}{more}", encoding="utf-8")
    return name


def test_the_number_is_that_of_distinct_images_in_both(corpora):
    captions, labels = open_corpus("captions"), open_corpus("labels")
    whole = load(str(recipe(corpora / "r.yaml", "train: [{corpus: labels}]")))
    assert find_overlap([whole], captions, "test") == (5, 10)
    assert find_overlap([whole], captions, "train") == (5, 10)
    assert find_overlap([whole], labels, "train") == (40, 40)
    assert find_overlap([], captions, "test") == (0, 10)
    both = load(str(recipe(corpora / "r.yaml", "train: [{corpus: labels}, {corpus: captions}]")))
    assert find_overlap([both], captions, "train") == (10, 10)
    none = load(str(recipe(corpora / "r.yaml", "mix: {labels: 0}, train: [{corpus: labels}, {corpus: captions}]")))
    assert find_overlap([none], captions, "test") == (0, 10)
    part = load(str(recipe(corpora / "r.yaml", "train: [{corpus: labels, limit: 7}]")))
    assert find_overlap([part], labels, "train") == (7, 40)
    gone = load(str(recipe(corpora / "r.yaml", "train: [{corpus: gone}, {corpus: labels}]")))
    assert find_overlap([gone], captions, "test") == (5, 10)


def test_eval_and_train_say_how_many(corpora, capsys):
    first = recipe(corpora / "r.yaml", "train: [{corpus: labels}]", "eval: [{corpus: captions}]\n")
    assert main(["train", str(first), "--run-dir", "runs/a", "--devices", "cpu"]) == 0
    warned = "5 of 10 evaluated images were trained on: the results will look too good"
    assert f"warning: eval: captions test: {warned}" in capsys.readouterr().err
    assert main(["eval", "runs/a", "--data", "captions", "--json"]) == 0
    out, err = capsys.readouterr()
    (entry,) = json.loads(out)["data"]
    assert entry["trained_on"] == 5
    assert warned in entry["warnings"]
    assert f"warning: captions test: {warned}" in err
    # a run that starts from it, and a mixture of the two, have seen the same images
    second = recipe(corpora / "s.yaml", "train: [{corpus: captions}]")
    argv = ["train", str(second), "--run-dir", "runs/b", "--devices", "cpu", "--init", "runs/a"]
    assert main([*argv, "model.tokenizer=runs/a/tokenizer.json"]) == 0
    assert main(["mix", "runs/a", "runs/b", "--alpha", "0.5", "-o", "runs/m"]) == 0
    capsys.readouterr()
    for run in ("runs/b", "runs/m"):
        assert {item.corpus for recipe in recipes_of(run) for item in recipe.data.train} == {"labels", "captions"}
        assert main(["eval", run, "--data", "captions", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["data"][0]["trained_on"] == 5


def test_rows_that_were_kept_out_of_training_are_shown(corpora, capsys):
    prepared(capsys, "--labels", "f", "-o", "clean", "--holdout", 0, "--not-in", "captions?split=test")
    prepared(capsys, "--labels", "f", "-o", "clean-of-train", "--holdout", 0, "--not-in", "captions?split=train")
    captions = open_corpus("captions")
    data = "train: [{corpus: clean}, {corpus: clean-of-train}]"
    both = load(str(recipe(corpora / "r.yaml", data)))
    expected = {"same": 5, "near": 0, "checked": ["clean"], "unchecked": ["clean-of-train"]}
    assert find_left_out([both], captions, "test") == expected
    assert find_left_out([both], open_corpus("labels"), "train") == {}
    first = recipe(corpora / "s.yaml", "train: [{corpus: clean}]")
    assert main(["train", str(first), "--run-dir", "runs/a", "--devices", "cpu"]) == 0
    capsys.readouterr()
    assert main(["eval", "runs/a", "--data", "captions", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["data"]
    assert entry["duplicates_of_eval"] == expected | {"unchecked": []}
    assert "trained_on" not in entry
    assert main(["eval", "runs/a", "--data", "captions", "--html", "p.html"]) == 0
    assert "Rows kept out of training" in capsys.readouterr().out
    assert "kept out of training" in (corpora / "p.html").read_text()


def test_a_mixture_in_open_clips_layout_names_its_runs(corpora):
    whole = recipe(corpora / "r.yaml", "train: [{corpus: labels}]")
    put(corpora / "runs/a", {"resolved.yaml": whole.read_bytes(), "meta.json": b"{}"})
    mixed = {"mixed": {"old": "hf-hub:a/b", "new": "runs/a", "alpha": 0.5}}
    put(corpora / "mixed", {"meta.json": json.dumps(mixed).encode()})
    assert [found.data.train[0].corpus for found in recipes_of("local-dir:mixed")] == ["labels"]


def test_a_model_without_a_run_says_nothing():
    assert recipes_of("hf-hub:a/b") == recipes_of("nowhere") == []
