"""Checkpoints of a run: the best one, every so many steps, dated runs; signals and disks that fill."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
from forking import begin

from unicl_cli.cli import main
from unicl_cli.core import checkpoint_files
from unicl_cli.recipe.load import load
from unicl_cli.recipe.text import dump
from unicl_cli.runs.place import run_path

TINY = """
name: tiny
data: {{image_size: 16, augment: {{name: shift}}, train: [{{corpus: {corpus}}}]}}
model: {{image: {{name: cnn, width: 8, stages: 2}}, text: {{name: cbow, width: 16}}, embed_dim: 16}}
batch: {{size: 8}}
steps: 8
schedule: {{warmup: 2}}
log: {{every: 1}}
checkpoint: {{every: 2, keep: 1}}
"""


SLEEPY = """
import pathlib, time
from unicl_cli.losses.unicl import UniCL

class Sleepy(UniCL):
    def forward(self, model, batch):
        pathlib.Path("asleep").touch()
        time.sleep(200)

def sleepy():
    return Sleepy()

PARTS = {"losses": {"sleepy": sleepy}}
"""
"""A loss whose step does not end."""


@pytest.fixture
def recipe(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    Path("tiny.yaml").write_text(TINY.format(corpus=digits))
    return "tiny.yaml"


def train(*argv, limit=None, **options):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); " if limit else ""
    code = f"{code}import sys; from unicl_cli.cli import main; sys.exit(main(sys.argv[1:]))".format(limit)
    words = [sys.executable, "-c", code, "train", *argv]
    return begin(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_best_checkpoint_stays_and_is_named(recipe, digits, capfd):
    every = [f"eval=[{{corpus: {digits}, split: test, every: 2}}]", "run_dir=run", "-q"]
    assert main(["train", recipe, *every, "checkpoint.best.metric=top1", "optim.lr=0.05"]) == 0
    rows = [json.loads(line) for line in Path("run/eval.jsonl").read_text().splitlines()]
    most = max(row["top1"] for row in rows)
    best = Path("run/checkpoints/best").read_text()
    assert {row["step"]: row["top1"] for row in rows}[int(best.removeprefix("step-"))] == most
    assert checkpoint_files.is_whole(Path("run/checkpoints") / best)
    assert {p.name for p in Path("run/checkpoints").glob("step-*")} == {best, "step-00000008"}


def test_a_cut_between_the_validation_and_its_mark_is_made_up_for(recipe, digits, capfd):
    changes = [f"eval=[{{corpus: {digits}, split: test, every: 8}}]", "run_dir=run", "-q", "checkpoint.best={}"]
    assert main(["train", recipe, *changes]) == 0
    for name in ("checkpoints/best", "meta.json"):
        (Path("run") / name).unlink()
    assert main(["train", recipe, *changes]) == 0
    assert Path("run/checkpoints/best").read_text() == "step-00000008"


def test_best_without_a_validation_is_refused(recipe, capsys):
    assert main(["recipes", "validate", recipe, "checkpoint.best={}"]) == 2
    assert "checkpoint.best: needs an entry in eval, whose metrics it compares" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_a_warning(recipe, capfd):
    assert main(["train", recipe, "--dry-run", "--json", "batch.size=200", "--devices", "cpu:1"]) == 0
    out, err = capfd.readouterr()
    assert err == "warning: batch.size 200 exceeds the 120 rows of the mix: each step repeats images\n"
    assert json.loads(out)["batch"] == 200


def test_what_is_kept_for_good_outlives_the_newest(tmp_path):
    for step in (2, 4, 6, 8, 10, 12):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / checkpoint_files.TRAINER).touch()
    (tmp_path / "step-odd").mkdir()
    (tmp_path / "latest").write_text("step-00000010")
    (tmp_path / "best").write_text("step-00000006")
    checkpoint_files.prune(tmp_path, 2, 4)
    kept = sorted(path.name for path in tmp_path.glob("step-0*"))
    assert [int(name.removeprefix("step-")) for name in kept] == [4, 6, 8, 10, 12]


def test_a_dated_run_goes_on_on_the_next_day_and_a_finished_one_does_not(recipe):
    given = load(recipe, ["run_dir=runs/{date}/{name}"])
    today = Path("runs") / date.today().isoformat() / "tiny"
    assert run_path(given) == today
    old = Path("runs/2020-01-31/tiny")
    assert main(["recipes", "show", recipe]) == 0
    old.mkdir(parents=True)
    (old / "resolved.yaml").write_text("no: recipe")
    assert run_path(given) == today
    (old / "resolved.yaml").write_text(dump(given))
    assert run_path(given) == old
    assert run_path(load(recipe, ["run_dir=runs/{date}/{name}", "steps=9"])) == today
    (old / "meta.json").write_text("{}")
    assert run_path(given) == today


def catches(pid, number):
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc which signals are caught")
def test_a_signal_before_the_first_step_is_a_stop_too(recipe):
    process = train(recipe, "run_dir=run")
    while not catches(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert err.endswith("\n  run the same command again to continue\n")
    assert "\nstopped before the " in f"\n{err}"


@pytest.mark.slow
def test_a_disk_that_fills_is_one_line_and_the_last_checkpoint_is_used(recipe, capfd):
    changes = [recipe, "run_dir=run", "checkpoint.every=4"]
    assert main(["train", *changes, "steps=4", "-q"]) == 0
    (Path("run") / "meta.json").unlink()
    metrics = Path("run/metrics.jsonl")
    metrics.write_text(json.dumps({"step": 0, "x" * 600_000: 1.0}) + "\n" + metrics.read_text())
    shorter = Path("run/resolved.yaml").read_text().replace("steps: 4", "steps: 8")
    Path("run/resolved.yaml").write_text(shorter)
    process = train(*changes, limit=metrics.stat().st_size + 300)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, ""), err
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said == ["error: run/metrics.jsonl: cannot be written: File too large"]
    assert "Traceback" not in err
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"
    assert main(["train", *changes, "-q"]) == 0
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()][1:] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(recipe):
    Path("sleepy.py").write_text(SLEEPY)
    process = train(recipe, "run_dir=run", "loss=sleepy", env=os.environ | {"UNICL_PLUGINS": "sleepy.py"})
    while not Path("asleep").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, "the first one waits for the step"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(recipe, capfd):
    Path("closed").mkdir(mode=0o500)
    assert main(["train", recipe, "run_dir=closed/run", "-q"]) == 2
    assert "closed/run: cannot be written: Permission denied" in capfd.readouterr().err
