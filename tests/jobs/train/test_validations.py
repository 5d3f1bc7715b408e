"""Validations: when they are due, their lines in ``eval.jsonl``, and the best of them."""

import json
from types import SimpleNamespace

import pytest

from unicl_cli.jobs.train.sizes import Sizes
from unicl_cli.jobs.train.validations import Validations
from unicl_cli.recipe.load import load_text

RECIPE = """
data: {train: [{corpus: c}]}
model: {image: cnn, text: cbow}
batch: {size: 8}
steps: 7
eval: [{corpus: c, split: test, every: 2}, {corpus: d, every: 3}]
checkpoint: {best: {metric: top1, mode: MODE}}
"""


class Noted(Validations):
    """Notes what it is asked to measure."""

    def __init__(self, run, mode="max"):
        recipe = load_text(RECIPE.replace("MODE", mode))
        super().__init__(SimpleNamespace(recipe=recipe, sizes=Sizes(1, 8, 7)), run, None)
        self.measured = []

    def measure(self, step, entry):
        self.measured.append((step, entry.corpus))


def figures(top1, corpus="c", split="test"):
    return {"corpus": corpus, "split": split, "top1": top1, "rows": 5}


def test_each_entry_is_due_every_so_many_steps_and_at_the_end(tmp_path):
    due = {step: [entry.corpus for entry in Noted(tmp_path).due(step)] for step in range(1, 8)}
    assert due == {1: [], 2: ["c"], 3: ["d"], 4: ["c"], 5: [], 6: ["c", "d"], 7: ["c", "d"]}


def test_a_repeated_validation_replaces_its_line_and_later_ones(tmp_path):
    said, tracked = [], []
    ours = Noted(tmp_path)
    ours.say, ours.track = said.append, lambda step, values: tracked.append((step, values))
    for step, top1 in ((2, 0.1), (4, 0.2), (6, 0.3), (4, 0.4)):
        ours.write_line(step, figures(top1))
    assert [(row["step"], row["top1"]) for row in ours.lines()] == [(2, 0.1), (4, 0.4)]
    assert said[-1] == "step 4 c test: top-1 40.0 %"
    assert tracked[-1] == (4, {"eval/c/test/top1": 0.4})


def test_a_validation_of_one_candidate_has_no_accuracy_and_is_never_the_best(tmp_path):
    said, tracked = [], []
    ours = Noted(tmp_path)
    ours.say, ours.track = said.append, lambda step, values: tracked.append((step, values))
    ours.write_line(2, figures(None) | {"reason": "one candidate: every answer is right", "text_to_image_r1": 0.5})
    assert said == ["step 2 c test: no top-1 (one candidate: every answer is right) text to image R@1 50.0 %"]
    assert tracked == [(2, {"eval/c/test/text_to_image_r1": 0.5})]
    assert ours.best_at(2, None) is None
    ours.write_line(4, figures(0.25))
    assert ours.best_at(4, None)["value"] == 0.25


def test_a_run_that_goes_back_loses_the_later_lines(tmp_path):
    ours = Noted(tmp_path)
    ours.drop_after(2)
    assert not ours.path.exists()
    for step in (2, 4, 6):
        ours.write_line(step, figures(0.5))
    ours.drop_after(4)
    assert [row["step"] for row in ours.lines()] == [2, 4]


def test_only_validations_without_a_line_are_caught_up(tmp_path):
    ours = Noted(tmp_path)
    ours.catch_up(0)
    assert ours.measured == []
    ours.write_line(6, figures(0.5))
    ours.write_line(6, figures(0.5, "c", "val"))
    ours.catch_up(6)
    assert ours.measured == [(6, "d")]
    ours.write_line(6, figures(0.5, "d", "val"))
    ours.catch_up(6)
    assert ours.measured == [(6, "d")], "an entry without a split takes the line of any"


@pytest.mark.parametrize(("mode", "best"), [("max", [2, 4]), ("min", [2, 6])])
def test_a_step_is_best_if_the_first_entry_was_never_better(tmp_path, mode, best):
    ours, found = Noted(tmp_path, mode), []
    for step, top1 in ((2, 0.4), (4, 0.5), (6, 0.3)):
        ours.write_line(step, figures(0.99, "d"))
        assert ours.best_at(step, None) is None, "not measured yet"
        ours.write_line(step, figures(top1))
        if (one := ours.best_at(step, None)) is not None:
            found.append(one["step"])
            assert one == {"step": step, "metric": "top1", "value": top1}
    assert found == best


def test_the_best_of_a_checkpoint_counts_though_its_line_is_gone(tmp_path):
    ours = Noted(tmp_path)
    ours.write_line(4, figures(0.5))
    assert ours.best_at(4, {"step": 2, "metric": "top1", "value": 0.6}) is None
    assert ours.best_at(4, {"step": 2, "metric": "top1", "value": 0.4}) is not None
    assert ours.best_at(4, {"step": 4, "metric": "top1", "value": 0.9})["value"] == 0.5, "its own line is newer"


def test_a_line_that_was_cut_is_left_out(tmp_path):
    ours = Noted(tmp_path)
    ours.write_line(2, figures(0.5))
    with ours.path.open("a") as file:
        file.write(json.dumps({"step": 4})[:-3])
    assert [row["step"] for row in ours.lines()] == [2]
