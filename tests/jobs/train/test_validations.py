"""Validations: when they are due, their lines in ``eval.jsonl``, and the best of them."""

import json
from types import SimpleNamespace

import pytest

from unicl_cli.jobs.train.sizes import Sizes
from unicl_cli.jobs.train.validations import Validations
from unicl_cli.recipe.load import load_text
from unicl_cli.runs.validations import Entry, main_entry

RECIPE = """
data: {train: [{corpus: c}]}
model: {image: cnn, text: cbow}
batch: {size: 8}
steps: 7
eval: [{corpus: c, split: test, every: 2}, {corpus: d, every: 3}, {corpus: c, split: train, every: 9}]
checkpoint: {best: {metric: top1, mode: MODE}}
"""


TEST, OTHER, TRAIN = (
    Entry(0, "c", "test", is_trained=False),
    Entry(1, "d", "val", is_trained=False),
    Entry(2, "c", "train", is_trained=True),
)
AGAIN = Entry(3, "c", "test", is_trained=False)


class Noted(Validations):
    """Notes what it is asked to measure."""

    def __init__(self, run, mode="max", entries=(TEST, OTHER, TRAIN), average=None):
        recipe = load_text(RECIPE.replace("MODE", mode))
        super().__init__(SimpleNamespace(recipe=recipe, sizes=Sizes(1, 8, 7)), entries, run, None, average)
        self.measured = []

    def measure(self, step, entry):
        self.measured.append((step, entry.number))


def figures(top1):
    return {"top1": top1, "rows": 5}


def older(ours, *lines):
    """Write lines as an older unicl did: without the number of the entry."""
    ours.path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_entry_is_due_every_so_many_steps_and_at_the_end(tmp_path):
    due = {step: [entry.number for entry in Noted(tmp_path).due(step)] for step in range(1, 8)}
    assert due == {1: [], 2: [0], 3: [1], 4: [0], 5: [], 6: [0, 1], 7: [0, 1, 2]}


def test_a_repeated_validation_replaces_its_line_and_later_ones(tmp_path):
    said, tracked = [], []
    ours = Noted(tmp_path)
    ours.say, ours.track = said.append, lambda step, values: tracked.append((step, values))
    for step, top1 in ((2, 0.1), (4, 0.2), (6, 0.3), (4, 0.4)):
        ours.write_line(step, TEST, figures(top1))
    assert [(row["step"], row["top1"]) for row in ours.lines()] == [(2, 0.1), (4, 0.4)]
    assert said[-1] == "step 4 c test: top-1 40.0 %"
    assert tracked[-1] == (4, {"eval/c/test/top1": 0.4})


def test_a_validation_of_one_candidate_has_no_accuracy_and_is_never_the_best(tmp_path):
    said, tracked = [], []
    ours = Noted(tmp_path)
    ours.say, ours.track = said.append, lambda step, values: tracked.append((step, values))
    ours.write_line(
        2, TEST, figures(None) | {"reason": "one candidate: every answer is right", "text_to_image_r1": 0.5}
    )
    assert said == [
        "step 2 c test: no top-1 (one candidate: every answer is right) text to image R@1 50.0 %",
        "warning: checkpoint.best: c test has no top-1, so no checkpoint is the best",
    ]
    assert tracked == [(2, {"eval/c/test/text_to_image_r1": 0.5})]
    assert ours.best_at(2, None) is None
    ours.write_line(4, TEST, figures(0.25))
    assert ours.best_at(4, None)["value"] == 0.25


def test_a_run_that_goes_back_loses_the_later_lines(tmp_path):
    ours = Noted(tmp_path)
    ours.drop_after(2)
    assert not ours.path.exists()
    for step in (2, 4, 6):
        ours.write_line(step, TEST, figures(0.5))
    ours.drop_after(4)
    assert [row["step"] for row in ours.lines()] == [2, 4]


def test_only_entries_without_a_line_of_their_own_are_caught_up(tmp_path):
    ours = Noted(tmp_path)
    ours.catch_up(0)
    assert ours.measured == []
    ours.write_line(7, OTHER, figures(0.5))
    ours.write_line(7, TRAIN, figures(0.5))
    ours.catch_up(7)
    assert ours.measured == [(7, 0)], "the line of another split of the same corpus is not its own"


def test_lines_of_an_older_unicl_belong_to_the_entry_of_their_corpus_and_split(tmp_path):
    ours = Noted(tmp_path)
    line = {"step": 6, "corpus": "c", "split": "test", "top1": 0.5}
    older(ours, line | {"step": 4, "top1": 0.25}, line, line | {"split": "train", "top1": 0.9})
    ours.catch_up(6)
    assert ours.measured == [(6, 1)]
    assert ours.history("top1") == {4: 0.25, 6: 0.5}
    ours.write_line(6, TEST, figures(0.75))
    assert [row["top1"] for row in ours.lines()] == [0.25, 0.9, 0.75], "replaced"


def test_entries_of_one_corpus_and_split_keep_their_lines_apart(tmp_path):
    said, tracked = [], []
    ours = Noted(tmp_path, entries=(TEST, AGAIN))
    ours.say, ours.track = said.append, lambda step, values: tracked.append(values)
    ours.write_line(2, TEST, figures(0.25))
    ours.write_line(2, AGAIN, figures(0.75))
    assert [(row["entry"], row["top1"]) for row in ours.lines()] == [(0, 0.25), (3, 0.75)]
    assert said == ["step 2 c test (eval.0): top-1 25.0 %", "step 2 c test (eval.3): top-1 75.0 %"]
    assert tracked == [{"eval/c/test/0/top1": 0.25}, {"eval/c/test/3/top1": 0.75}]
    assert ours.history("top1") == {2: 0.25}


@pytest.mark.parametrize(("mode", "best"), [("max", [2, 4]), ("min", [2, 6])])
def test_a_step_is_best_if_the_first_entry_was_never_as_good(tmp_path, mode, best):
    ours, found = Noted(tmp_path, mode), []
    for step, top1 in ((2, 0.4), (4, 0.5), (5, 0.5), (6, 0.3), (7, 0.3)):
        ours.write_line(step, OTHER, figures(0.99))
        assert ours.best_at(step, None) is None, "not measured yet"
        ours.write_line(step, TEST, figures(top1))
        if (one := ours.best_at(step, None)) is not None:
            found.append(one["step"])
            assert one == {"step": step, "metric": "top1", "value": top1}
    assert found == best


def test_training_data_never_chooses_the_best_while_another_entry_could(tmp_path):
    assert main_entry([TRAIN._replace(number=0), OTHER]) == OTHER
    assert main_entry([TRAIN, TRAIN._replace(number=1)]).number == 1
    ours = Noted(tmp_path, entries=(TRAIN._replace(number=0), OTHER))
    ours.write_line(2, ours.entries[0], figures(0.9))
    assert ours.lines()[0]["trained_split"] is True
    assert ours.best_at(2, None) is None
    ours.write_line(2, OTHER, figures(0.1))
    assert ours.best_at(2, None)["value"] == 0.1


def test_the_best_of_a_checkpoint_counts_though_its_line_is_gone(tmp_path):
    ours = Noted(tmp_path)
    ours.write_line(4, TEST, figures(0.5))
    assert ours.best_at(4, {"step": 2, "metric": "top1", "value": 0.6}) is None
    assert ours.best_at(4, {"step": 2, "metric": "top1", "value": 0.5}) is None, "the first of equal values wins"
    assert ours.best_at(4, {"step": 2, "metric": "top1", "value": 0.4}) is not None
    assert ours.best_at(4, {"step": 4, "metric": "top1", "value": 0.9})["value"] == 0.5, "its own line is newer"
    assert ours.best_at(4, {"step": 2, "metric": "text_to_image_r1", "value": 0.9}) is not None, "another metric"


def test_figures_of_the_trained_weights_are_not_compared_with_those_of_their_average(tmp_path):
    ours = Noted(tmp_path, average=object())
    older(ours, {"step": 2, "corpus": "c", "split": "test", "top1": 0.9})
    ours.write_line(4, TEST, {"weights": "average", "top1": 0.2, "raw_top1": 0.95})
    best = {"step": 4, "metric": "top1", "value": 0.2, "weights": "average"}
    assert ours.best_at(4, {"step": 2, "metric": "top1", "value": 0.9}) == best
    known = {"step": 2, "metric": "top1", "value": 0.3, "weights": "average"}
    assert ours.best_at(4, known) is None


def test_a_line_that_was_cut_is_left_out(tmp_path):
    ours = Noted(tmp_path)
    ours.write_line(2, TEST, figures(0.5))
    with ours.path.open("a") as file:
        file.write(json.dumps({"step": 4})[:-3])
    assert [row["step"] for row in ours.lines()] == [2]
