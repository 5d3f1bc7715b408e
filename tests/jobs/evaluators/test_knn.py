"""The evaluator knn on coloured images, where every answer is known, and evaluators named by recipes."""

import json

import pytest
import torch
from colour_toys import PLAIN, colour_corpus, model

from unicl_cli.cli import main
from unicl_cli.contracts import Part
from unicl_cli.data.corpus import Corpus
from unicl_cli.errors import UniclError
from unicl_cli.jobs.evaluate import evaluate, measure_validation
from unicl_cli.losses.supcon import SupCon
from unicl_cli.losses.unicl import UniCL


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return colour_corpus(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def tags(tmp_path_factory) -> str:
    """Rows with three labels each."""
    out = tmp_path_factory.mktemp("tags") / "corpus"
    assert main(["prepare", "--labels", "shapes?attributes=true&count=60&test=30", "-o", str(out), "-q"]) == 0
    return str(out)


def knn_of(loaded, corpus: Corpus, split: str = "test") -> dict:
    (entry,) = evaluate(loaded, data=None, split=split, batch=5, accelerator=PLAIN, evaluators=["knn"])["data"]
    return entry["evaluators"]["knn"]


def test_neighbours_in_train_decide_and_no_text_is_needed(corpus):
    found = knn_of(model(SupCon(3), corpus, tokenizer=None), corpus)
    assert (found["n"], found["features"]) == (12, "pre")
    assert found["top1"] == pytest.approx(11 / 12), "one test image has the colour of another class"
    assert found["top1_interval"][0] < found["top1"] < found["top1_interval"][1]
    assert found["k"] == min(20, found["n_train"])


def test_features_that_tell_nothing_apart_answer_one_class(corpus):
    blind = model(SupCon(3), corpus, tokenizer=None)
    blind.step.model.see.weight.data = torch.zeros(3, 3)
    assert knn_of(blind, corpus)["top1"] == pytest.approx(4 / 12)


def test_the_split_of_the_neighbours_is_not_measured(corpus):
    with pytest.raises(UniclError, match="--split train"):
        knn_of(model(UniCL(), corpus), corpus, "train")


def test_a_validation_has_the_main_figures_of_the_evaluators_that_are_named(corpus):
    loaded = model(UniCL(), corpus)
    parts = [Part("zeroshot", {}), Part("knn", {"k": 3, "features": "post"}), Part("probe", {}), Part("odd-spread", {})]
    figures = measure_validation(loaded, corpus, "test", batch=5, evaluators=parts)
    shares = ("top1", "candidates", "knn_top1", "probe_top1")
    assert [*figures] == [*shares, "odd-spread_within_class", "odd-spread_overall"], "all floats of a plugin's"
    assert figures["top1"] == figures["knn_top1"] == pytest.approx(11 / 12)
    assert measure_validation(loaded, corpus, "test", batch=5, evaluators=parts[1:2]) == {
        "knn_top1": pytest.approx(11 / 12)
    }


RECIPE = """
data: {{train: [{{corpus: {corpus}}}], image_size: 16}}
model: {{image: {{name: cnn, width: 8, stages: 2}}, text: null}}
loss: ce
batch: {{size: 8}}
steps: 2
"""


def refused(folder, capsys, corpus, *changes: str) -> str:
    """Return the error of a training and of its dry run, which are the same; nothing is written."""
    (folder / "r.yaml").write_text(RECIPE.format(corpus=corpus))
    words = ["train", str(folder / "r.yaml"), *changes, "--run-dir", str(folder / "run"), "--devices", "cpu:1"]
    said = []
    for more in (["-q"], ["--dry-run"]):
        capsys.readouterr()
        assert main([*words, *more]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        said.append(line)
    assert said[0] == said[1]
    assert not (folder / "run").exists()
    return said[0]


def test_an_evaluator_that_fits_neither_model_nor_data_is_refused_before_the_training(digits, tags, tmp_path, capsys):
    entry = "eval=[{{corpus: {}, evaluators: [{}]}}]"
    told = refused(tmp_path, capsys, digits, entry.format(digits, "knn, retrieval"))
    assert f"eval.0.evaluators: retrieval needs a model that reads captions: corpus {digits}, split test" in told
    told = refused(tmp_path, capsys, digits, f"eval=[{{corpus: {digits}, split: train, evaluators: [knn]}}]")
    assert "--split train" in told
    told = refused(tmp_path, capsys, digits, entry.format(tags, "knn"))
    assert "knn needs rows with one label each" in told
    told = refused(tmp_path, capsys, digits, entry.format(tags, "{name: probe, method: knn}"))
    assert "knn" in told


def test_figures_of_evaluators_choose_the_best_checkpoint_and_stand_in_runs_ls(digits, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus=digits))
    changes = [f"eval=[{{corpus: {digits}, every: 1, evaluators: [knn, zeroshot]}}]", "checkpoint.every=1"]
    words = ["train", str(tmp_path / "r.yaml"), *changes, "checkpoint.best.metric=knn_top1", "--devices", "cpu:1"]
    assert main([*words, "--run-dir", str(tmp_path / "runs/a")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs/a/eval.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: (line["knn_top1"], -line["step"]))
    assert (tmp_path / "runs/a/checkpoints/best").read_text().strip() == f"step-{best['step']:08d}"
    assert f"knn top-1 {100 * lines[-1]['knn_top1']:.1f} %" in capsys.readouterr().err
    assert main(["runs", "ls", str(tmp_path / "runs"), "--json"]) == 0
    assert '"best_metric": "knn_top1"' in capsys.readouterr().out
