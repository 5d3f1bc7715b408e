"""Evaluators of the test plugin through `unicl eval` on a small run."""

import json
from pathlib import Path

import pytest

from unicl_cli.cli import run
from unicl_cli.errors import UniclError


@pytest.fixture(scope="module")
def model(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One step of training on labels and captions."""
    out = tmp_path_factory.mktemp("run") / "run"
    words = [f"data.train=[{{corpus: {digits}}}]", "eval=[]", "batch.size=12", "epochs=null", "steps=1"]
    assert run(["train", "digits-unicl", *words, "--run-dir", str(out), "-q"]) == 0
    return str(out)


@pytest.fixture(scope="module")
def headed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a classifier of its own, which reads no captions."""
    out = tmp_path_factory.mktemp("headed") / "run"
    words = [f"data.train=[{{corpus: {digits}}}]", "eval=[]", "batch.size=12", "epochs=null", "steps=1", "loss=ce"]
    assert run(["train", "digits-unicl", *words, "--run-dir", str(out), "-q"]) == 0
    return str(out)


def test_an_evaluator_of_a_plugin_runs_by_its_name(model: str, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert run(["eval", model, "--evaluator", "odd-spread", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["data"]
    assert list(entry) == ["name", "split", "evaluators", "checksum", "trained_classes"]
    figures = entry["evaluators"]["odd-spread"]
    assert figures["n"] > 100
    assert -1 <= figures["overall"] < figures["within_class"] <= 1 + 1e-6
    both = ["--evaluator", "zeroshot", "--evaluator", "odd-spread", "--evaluator", "odd-spread"]
    assert run(["eval", model, *both]) == 0
    shown = capsys.readouterr().out
    assert "Classification, %" in shown
    assert "Retrieval, %" not in shown
    assert shown.count("odd-spread") == 1
    assert f"{figures['within_class']:.4g}" in shown


def test_the_probe_gives_the_figures_of_its_command(model: str, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert run(["eval", model, "--evaluator", "probe", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["data"]
    assert run(["probe", model, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    figures = entry["evaluators"]["probe"]
    assert figures["top1"] > 0.1
    assert figures == {key: document[key] for key in figures}


def test_an_evaluator_that_does_not_fit_is_named(headed: str, model: str, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert run(["eval", headed, "--evaluator", "odd-spread", "--evaluator", "odd-nothing", "--json"]) == 0
    told = capsys.readouterr()
    assert "odd-nothing needs a model that reads captions: left out" in told.err
    assert list(json.loads(told.out)["data"][0]["evaluators"]) == ["odd-spread"]
    with pytest.raises(UniclError, match="odd-nothing needs a model that reads captions"):
        run(["eval", headed, "--evaluator", "odd-nothing"])
    with pytest.raises(UniclError, match="no evaluator 'odd-spred'; did you mean 'odd-spread'"):
        run(["eval", model, "--evaluator", "odd-spred"])
    with pytest.raises(UniclError, match="evaluator 'odd-nothing' returned values that JSON cannot hold"):
        run(["eval", model, "--evaluator", "odd-nothing"])
