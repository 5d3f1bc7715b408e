"""TensorBoard and W&B: read back with their own readers; a tracker that fails never ends a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState

from unicl_cli.cli import main
from unicl_cli.core import trackers
from unicl_cli.core.trackers import TrackerSink, check_installed
from unicl_cli.errors import UniclError


@pytest.fixture(autouse=True)
def state():
    PartialState(cpu=True)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder), purge_orphaned_data=True)
    events.Reload()
    return {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_back_what_was_logged_and_a_continued_run_repeats_nothing(tmp_path):
    config = {"optim.lr": 1e-3, "optim.betas.1": 0.98, "ema": None, "eval": []}
    first = TrackerSink(["tensorboard"], tmp_path, "p", config, 0)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": step / 2})
    first.close()
    again = TrackerSink(["tensorboard"], tmp_path, "p", config, 2)
    for step in (3, 4):
        again.log(step, {"loss": float(step)})
    again.log(4, {"eval/c/test/top1": 0.5})
    again.close()
    found = scalars(tmp_path / "tb")
    assert found["loss"] == [(1, 0.5), (2, 1.0), (3, 3.0), (4, 4.0)]
    assert found["eval/c/test/top1"] == [(4, 0.5)]
    (written,) = (tmp_path / "tb").glob("*/hparams.yml")
    lines = written.read_text().splitlines()
    assert {"optim.betas.1: 0.98", "ema: None", "eval: '[]'"} <= set(lines), "odd values are text"


def test_a_tracker_that_throws_is_switched_off_with_one_warning(tmp_path, capfd, monkeypatch):
    class Failing:
        def start(self):
            pass

        def store_init_configuration(self, values):
            pass

        def log(self, values, step):
            raise ConnectionError(f"no route at step {step}\nand more")

    monkeypatch.setitem(trackers.OPENERS, "wandb", lambda *_: Failing())
    sink = TrackerSink(["wandb", "tensorboard"], tmp_path, "p", {}, 0)
    for step in (1, 2, 3):
        sink.log(step, {"loss": 1.0})
    sink.close()
    expected = "warning: tracker wandb is switched off: ConnectionError: no route at step 1\n"
    assert capfd.readouterr().err == expected
    assert len(scalars(tmp_path / "tb")["loss"]) == 3


def test_a_tracker_that_is_not_installed_comes_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # W&B's own folder of runs is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)  # accelerate may have imported it
    with pytest.raises(UniclError, match=r"log.trackers: wandb not installed") as caught:
        check_installed(["wandb"])
    assert caught.value.hint == "pip install wandb"
    check_installed([])


@pytest.mark.slow
def test_wandb_offline_keeps_its_id(tmp_path):
    code = (
        "import sys; from pathlib import Path; from accelerate import PartialState; PartialState(cpu=True)\n"
        "from unicl_cli.core.trackers import TrackerSink\n"
        "for done in (0, 1):\n"
        "    sink = TrackerSink(['wandb'], Path(sys.argv[1]), 'p', {'a.b': 1}, done)\n"
        "    assert sink.trackers, 'started'\n"
        "    sink.log(done + 1, {'loss': 0.5}); assert sink.trackers, 'logged'; sink.close()\n"
        "    print((Path(sys.argv[1]) / 'wandb-id').read_text())\n"
    )
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.split()
    assert first == second
    name = (tmp_path / "wandb-id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}"))) >= 1


def test_training_writes_its_figures_and_validations_to_tensorboard(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    changes = [f"data.train=[{{corpus: {digits}}}]", f"eval=[{{corpus: {digits}, split: test, every: 3}}]", "steps=6"]
    changes += ["batch.size=8", "log={every: 2, trackers: [tensorboard]}", "run_dir=run", "checkpoint.best={}"]
    assert main(["train", "quickstart", *changes, "-q"]) == 0
    found = scalars(tmp_path / "run" / "tb")
    assert [step for step, _ in found["loss"]] == [2, 4, 6]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [value for _, value in found["loss"]] == pytest.approx([json.loads(line)["loss"] for line in lines])
    (tag,) = [tag for tag in found if tag.endswith("/test/top1")]
    assert [step for step, _ in found[tag]] == [3, 6]
