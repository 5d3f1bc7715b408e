"""The evaluator `loss`: a loss's own figures, summed over batches of any size; refused where a loss has none."""

import json

import pytest

from unicl_cli.cli import main
from unicl_cli.testing import recipe_of

PLUGIN = """
from unicl_cli.api import NO_LABEL, both_ways
from torch import nn, stack

class Counted(nn.Module):
    score, activation = "text", "softmax"
    def forward(self, model, batch):
        u, v = model.encode_image(batch.images).embed, model.encode_text(batch.tokens).embed[batch.text_index]
        return both_ways(u, v, batch.keys, model.scale())
    def measure(self, model, batch):
        has = batch.labels != NO_LABEL
        first = (batch.labels == 0).sum()
        return {"first_class": stack([first, has.sum()]).float(), "nothing": stack([first * 0, first * 0]).float()}

PARTS = {"losses": {"counted": lambda: Counted()}}
"""


def test_figures_are_shares_over_all_rows(digits, tmp_path, capsys):
    plugin, recipe = tmp_path / "counted.py", tmp_path / "r.yaml"
    plugin.write_text(PLUGIN)
    recipe.write_text(recipe_of(digits, loss="counted", steps=1))
    run = str(tmp_path / "run")
    assert main(["--plugin", str(plugin), "train", str(recipe), "--run-dir", run, "--devices", "cpu:1", "-q"]) == 0
    found = []
    for batch in ("64", "500"):
        capsys.readouterr()
        words = ("eval", run, "--data", str(digits), "--evaluator", "loss", "--evaluator", "zeroshot", "--json")
        assert main(["--plugin", str(plugin), *words, "--batch", batch]) == 0
        entry = json.loads(capsys.readouterr().out)["data"][0]
        found.append(entry["evaluators"]["loss"])
        recall = next(each for each in entry["per_class"] if each["class"] == "zero")
        assert found[-1]["first_class"] == pytest.approx(recall["n"] / entry["n"])
    assert found[0] == found[1]
    assert "nothing" not in found[0]


def test_a_loss_without_figures_is_refused(digits, tmp_path, capsys):
    recipe, run = tmp_path / "r.yaml", str(tmp_path / "run")
    recipe.write_text(recipe_of(digits, steps=1))
    assert main(["train", str(recipe), "--run-dir", run, "--devices", "cpu:1", "-q"]) == 0
    assert main(["eval", run, "--data", str(digits), "--evaluator", "loss"]) == 2
    assert "a loss with metrics of its own" in capsys.readouterr().err
