"""A corpus and a run that the commit before the rooms moved wrote: read, evaluated and resumed as they are."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus

FIXTURES = Path(__file__).parent / "fixtures" / "before-rooms"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The fixture's folder, writable; the current directory."""
    shutil.copytree(FIXTURES, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_an_old_corpus_is_whole_and_read(old, capfd):
    assert main(["prepare", "--verify", "-o", "old-corpus"]) == 0, capfd.readouterr().err
    corpus = open_corpus("old-corpus")
    assert [item.key for item in corpus.classes] == ["blue-square", "green dot", "red dot", "red_square"]
    assert corpus.splits == ("train", "test")


def test_an_old_run_evaluates_to_the_old_figures(old, capfd):
    assert main(["eval", "old-run", "--json"]) == 0
    (now,) = json.loads(capfd.readouterr().out)["data"]
    (then,) = json.loads((old / "eval.json").read_text())["data"]
    rounded = ("ece", "reliability")  # means of probabilities, which differ by rounding between kernels of attention
    assert {name: now[name] for name in then if name not in rounded} == {
        k: v for k, v in then.items() if k not in rounded
    }
    assert now["ece"] == pytest.approx(then["ece"], rel=1e-3)
    assert [item["n"] for item in now["reliability"]] == [item["n"] for item in then["reliability"]]
    assert now["candidates"] == {"total": 4, "not_in_corpus": 0}


def test_an_old_run_resumes_to_the_old_weights(old, capfd):
    """Rounding alone may differ: another processor, another version of torch."""
    assert main(["train", "old-run/recipe.yaml", "--run-dir", "old-run", "--devices", "cpu"]) == 0
    said = capfd.readouterr().err
    assert "continues after step 25 of 40" in said
    assert "another recipe" not in said
    assert "own_text: 0.0" in (old / "old-run" / "resolved.yaml").read_text(), "the default when the run began"
    expected, found = load_file(old / "final.safetensors"), load_file(old / "old-run" / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert (tensor - found[name]).abs().max() < 1e-4, name
    lines = (old / "old-run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))
