"""`unicl runs`: what a list and a page say of finished, stopped, lost and damaged runs."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicl_cli.cli import main
from unicl_cli.jobs.runs import sparkline, table_lines
from unicl_cli.runs.status import is_lost, list_runs
from unicl_cli.runs.validations import best_of
from unicl_cli.storage.json_lines import Line, read_lines

Capture = pytest.CaptureFixture[str]
NOW = time.time()


def run_at(folder: Path, **facts: object) -> Path:
    folder.mkdir(parents=True)
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    status = {"schema": "unicl/runs/1", "state": "done", "step": 5, "steps": 20, "world": 2, "updated": NOW, **here}
    (folder / "status.json").write_text(json.dumps(status | facts))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_a_line_says_how_far_how_fast_and_how_good(runs: Path, capsys: Capture):
    run = run_at(runs / "one", state="running", eta_s=95.0, img_s=5123.4, last_loss=1.5, updated=time.time())
    (run / "eval.jsonl").write_text('{"step": 1, "top1": 0.5, "r1": 0.9}\n{"step": 2, "top1": 0.75}\n{"step": 3, "top')
    assert main(["runs", "ls"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "state", "step", "%", "ETA", "img/s", "loss", "best", "devices", "age"]
    assert line.split()[:-1] == ["one", "running", "5/20", "25", "1m35s", "5,123", "1.500", "top-1", "75.0", "%", "2"]


def test_a_run_that_has_been_silent_for_two_minutes_is_lost(runs: Path):
    run_at(runs / "a", state="running", updated=time.time() - 100)
    run_at(runs / "b", state="running", updated=time.time() - 130)
    run_at(runs / "c", state="stopped", updated=time.time() - 9999)
    assert {run["run"][-1]: run["state"] for run in list_runs(runs)} == {"a": "running", "b": "lost", "c": "stopped"}


def test_a_lost_run_is_where_its_newest_checkpoint_is(runs: Path):
    run = run_at(runs / "a", state="running", step=0, updated=time.time() - 130)
    (run / "checkpoints" / "step-00000012").mkdir(parents=True)
    (run / "checkpoints" / "step-00000012" / "model.safetensors").touch()
    (run / "checkpoints" / "step-00000015").mkdir()
    (run / "checkpoints" / "step-00000021").mkdir()
    (run / "checkpoints" / "step-00000021" / "model.safetensors").touch()
    assert list_runs(runs)[0]["step"] == 12, "no run has more steps than all"


def test_a_run_whose_process_is_gone_from_this_machine_is_lost():
    status = {"updated": time.time(), "host": socket.gethostname(), "pid": 2**22 + 1}
    assert is_lost(status)
    assert not is_lost(status | {"host": "elsewhere"})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"state": 3}', '{"state": "running", "step": null, "steps": 1, "updated": 1}', "\x00",
     '{"state": "running", "step": 21, "steps": 20, "updated": 1}', '{"state":"done","step":1,"steps":0,"updated":1}',
     '{"state": "done", "step": 1, "steps": 1, "updated": NaN}', '{"state":"done","step":1,"steps":1,"updated":1e999}'],
)  # fmt: skip
def test_a_damaged_run_is_a_line_and_never_an_end(runs: Path, capsys: Capture, text: str):
    run_at(runs / "good")
    (runs / "bad").mkdir()
    (runs / "bad" / "status.json").write_text(text)
    (runs / "new").mkdir()
    (runs / "new" / "recipe.yaml").write_text("x")
    (runs / "mixed").mkdir()
    (runs / "mixed" / "meta.json").write_text("{}")
    (runs / "no-run").mkdir()
    (runs / "a-file").write_text("")
    assert main(["runs", "ls"]) == 0
    out = capsys.readouterr().out
    states = [line.split()[:2] for line in out.splitlines()]
    assert ["bad", "damaged"] in states
    assert ["mixed", "model"] in states
    assert "not begun" in out
    assert "no-run" not in out
    assert main(["runs", "show", "runs/bad"]) == 2
    assert capsys.readouterr().err.startswith("error: runs/bad/status.json: damaged: ")


@given(st.binary(max_size=60))
def test_whatever_the_lines_hold_they_are_rows_or_left_out(data: bytes):
    path = Path(os.environ["HF_HOME"]) / f"lines-{os.getpid()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"step": 1}\n' + data + b'\n{"step": 2}\n')
    rows = [line.values for line in read_lines(path, Line)]
    assert rows[0] == {"step": 1}
    assert rows[-1] == {"step": 2}


def test_show_tells_the_curve_the_validations_and_the_command_that_goes_on(runs: Path, capsys: Capture):
    run = run_at(runs / "one", state="stopped", updated=time.time() - 65)
    lines = [{"step": n, "loss": loss} for n, loss in enumerate((4.0, 3.0, None, 2.0))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (run / "eval.jsonl").write_text('{"step": 2, "corpus": "c", "split": "test", "top1": 0.5}\n')
    command = ["/bin/unicl", "train", "my recipe.yaml", "optim.lr=1e-3"]
    (run / "env.json").write_text(json.dumps({"command": command, "cwd": str(Path.cwd())}))
    assert main(["runs", "show", "runs/one"]) == 0
    first, curve, measured, command = capsys.readouterr().out.splitlines()
    assert first.startswith("runs/one: stopped at step 5 of 20, 1m05s ago on ")
    assert curve in ("loss  4.000 █▅▁ 2.000", "loss  4.000 #=_ 2.000")
    assert measured == "step 2  c test: top-1 50.0 %"
    assert command == "to continue: unicl train 'my recipe.yaml' optim.lr=1e-3"
    (run / "env.json").write_text(json.dumps({"command": ["unicl", "train", "x"], "cwd": "/else where"}))
    main(["runs", "show", "runs/one"])
    assert capsys.readouterr().out.endswith("to continue: cd '/else where' && unicl train x\n")


def test_show_json_is_the_status_file(runs: Path, capsys: Capture):
    run = run_at(runs / "one")
    assert main(["runs", "show", "runs/one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "status.json").read_text())
    assert main(["runs", "ls", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "unicl/runs/1"
    assert document["runs"][0]["state"] == "done"


def test_what_is_no_run_is_refused_in_one_line(runs: Path, capsys: Capture):
    assert main(["runs", "ls", "nowhere"]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err
    runs.mkdir()
    assert main(["runs", "show", "runs"]) == 2
    assert "runs: not a run directory" in capsys.readouterr().err
    assert main(["runs", "ls"]) == 0
    assert capsys.readouterr().out == "no runs here: train one with unicl train RECIPE\n"


def test_without_the_folder_runs_there_are_no_runs(runs: Path, capsys: Capture):
    assert not runs.exists()
    assert main(["runs", "ls"]) == 0
    assert capsys.readouterr() == ("no runs here: train one with unicl train RECIPE\n", "")
    assert main(["runs", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == []


def test_a_model_without_a_training_is_a_line_without_a_remark(runs: Path, capsys: Capture):
    (runs / "mixed").mkdir(parents=True)
    (runs / "mixed/meta.json").write_text("{}")
    run_at(runs / "cut").joinpath("status.json").write_text("{")
    assert main(["runs", "ls"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["mixed", "model"], ["cut", "damaged"]]
    assert "no training" not in out
    assert "status.json: damaged" in out  # a fault is reported


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_a_curve_is_at_most_forty_marks_of_eight_heights(values: list[float]):
    marks = sparkline(values)
    assert len(marks) == min(40, len(values))
    assert set(marks) <= set("▁▂▃▄▅▆▇█_.-:=+*#")


def test_the_best_figure_is_the_largest_of_the_first_kind():
    assert best_of([{"step": 1, "r1": 0.2, "top1": 0.9}, {"step": 2, "r1": 0.1}]) == ("r1", 0.2)
    assert best_of([]) is None
    assert list(table_lines([])) == ["no runs here: train one with unicl train RECIPE"]


def test_absurd_losses_are_left_out_of_the_curve(runs: Path, capsys: Capture):
    run = run_at(runs / "one")
    rows = [{"step": step, "loss": loss} for step, loss in enumerate((1.0, 1e308, -1e308, 2.0))]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["runs", "show", str(run)]) == 0
    assert "loss  1.000 " in capsys.readouterr().out
