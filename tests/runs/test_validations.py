"""Lines of ``eval.jsonl`` by entry: names, order, the best of them; lines of an older unicl have no number."""

import json
from pathlib import Path

import pytest

from unicl_cli.cli import main
from unicl_cli.runs.validations import best_of, best_step, group_rows, name_rows

OLD = [
    {"step": 1, "corpus": "c", "split": "test", "top1": 0.25},
    {"step": 1, "corpus": "easy", "split": "val", "top1": 0.99},
    {"step": 2, "corpus": "c", "split": "test", "top1": 0.5},
]
NEW = [
    {"step": 1, "entry": 2, "corpus": "c", "split": "test", "top1": 0.75},
    {"step": 1, "entry": 0, "corpus": "c", "split": "train", "trained_split": True, "top1": 0.9},
    {"step": 1, "entry": 1, "corpus": "c", "split": "test", "weights": "average", "top1": 0.2, "raw_top1": 0.8},
]


def test_the_best_is_that_of_the_first_entry_alone():
    assert best_of(OLD) == ("top1", 0.5)
    assert best_of(NEW) == ("top1", 0.2), "neither training data nor another entry of the corpus, nor the raw weights"
    assert best_of(NEW[1:2]) == ("top1", 0.9), "training data, where there is nothing else"
    assert best_of([{"step": 1, "entry": 0, "reason": "none"}, *OLD[1:2]]) == ("top1", 0.99), "the first with a figure"


def test_entries_come_in_the_order_of_the_recipe_and_have_names_of_their_own():
    assert [name for name, _ in group_rows(NEW)] == ["c test (eval.1)", "c test (eval.2)", "c train"]
    assert name_rows(OLD) == ["c test", "easy val", "c test"]
    assert name_rows([]) == []


def test_lines_of_before_and_after_an_update_are_one_entry():
    newer = {"step": 3, "entry": 0, "corpus": "c", "split": "test", "top1": 0.4}
    groups = dict(group_rows([*OLD, newer]))
    assert [row["step"] for row in groups["c test"]] == [1, 2, 3]
    assert best_of([*OLD, newer]) == ("top1", 0.5)


@pytest.mark.parametrize("odd", [{"entry": "x"}, {"entry": True}, {"entry": None}, {"corpus": 5}, {"corpus": [1]}])
def test_odd_lines_are_shown_as_they_are(odd):
    (name,) = name_rows([OLD[0] | odd])
    assert name.endswith(" test")
    assert best_of([OLD[0] | odd]) == ("top1", 0.25)


def test_of_equal_values_the_first_step_is_best():
    values = {5: 0.5, 3: 0.75, 9: 0.75, 1: 0.25}
    assert (best_step(values), best_step(values, "min"), best_step({})) == (3, 1, None)


def test_a_run_lists_its_validations_by_name_and_the_best_of_the_first(tmp_path: Path, capsys):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    status = {"schema": "unicl/runs/1", "state": "done", "step": 1, "steps": 1, "updated": 1.7e9}
    (run / "status.json").write_text(json.dumps(status))
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NEW))
    assert main(["runs", "ls", str(run.parent)]) == 0
    assert "top-1 20.0 %" in capsys.readouterr().out
    assert main(["runs", "show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "c test (eval.1): top-1 20.0 %, raw top-1 80.0 %" in shown
    assert "c test (eval.2): top-1 75.0 %" in shown
