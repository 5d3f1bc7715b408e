"""Checkpoints in the background: a copy of their moment, one at a time, and errors that reach the training."""

import json
import threading
import time

import pytest
import torch

from unicl_cli.core import checkpoint, checkpoint_files, saver
from unicl_cli.core.saver import Saver
from unicl_cli.errors import UniclError


@pytest.fixture
def held(monkeypatch):
    """The thread writes when it is let: ``held.set()``."""
    go, real = threading.Event(), saver.write

    def write(*args):
        assert go.wait(20)
        real(*args)

    monkeypatch.setattr(saver, "write", write)
    return go


class Training:
    def __init__(self, root, **options):
        torch.manual_seed(0)
        self.said = []
        self.module = torch.nn.Linear(30, 30)
        self.module.register_buffer("seen", torch.zeros(3))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1, fused=True)
        self.average = {"weight": torch.zeros(30, 30)}
        whole = {"keep": 9, "keep_every": None, "asynchronous": True, "step": None, "say": self.said.append} | options
        self.saver, self.root = Saver(root, **whole), root

    def step(self):
        self.optimizer.zero_grad()
        self.module(torch.ones(2, 30)).square().mean().backward()
        self.optimizer.step()
        self.module.seen += 1
        self.average["weight"] += 1

    def save(self, step, **facts):
        self.saver.save(self.module, self.optimizer, {"step": step, **facts}, self.average)

    def tensors(self):
        return {
            name: {n: x.clone() for n, x in tensors.items()}
            for name, tensors in checkpoint.state_of(self.module, self.optimizer, self.average, copy=False).items()
        }


def read(folder):
    names = json.loads((folder / checkpoint_files.TRAINER).read_text())["files"]
    return {name: checkpoint.read_tensors(folder / name) for name in names}


def equal(a, b):
    assert a.keys() == b.keys()
    return all(a[f].keys() == b[f].keys() and all(torch.equal(a[f][n], b[f][n]) for n in a[f]) for f in a)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_written_is_the_state_of_its_moment(tmp_path, held, asynchronous):
    """The training goes on before a byte is written."""
    run = Training(tmp_path, asynchronous=asynchronous)
    run.step()
    then = run.tensors()
    if not asynchronous:
        held.set()
    run.save(1)
    run.step()
    assert not equal(then, run.tensors())
    assert (checkpoint_files.newest(tmp_path) is None) == asynchronous
    held.set()
    run.saver.join()
    assert equal(read(tmp_path / "step-00000001"), then)
    run.saver.close()


def test_facts_too_are_of_their_moment(tmp_path, held):
    run, facts = Training(tmp_path), {"step": 1, "guard": {"row": 0}}
    run.saver.save(run.module, run.optimizer, facts)
    facts["step"], facts["guard"] = 2, {"row": 5}
    held.set()
    run.saver.join()
    assert checkpoint_files.read_facts(tmp_path / "step-00000001")["guard"] == {"row": 0}


def test_one_save_waits_for_the_one_before(tmp_path, held):
    run = Training(tmp_path)
    run.save(1)
    run.step()
    timer = threading.Timer(0.2, held.set)
    timer.start()
    began = time.monotonic()
    run.save(2)
    assert time.monotonic() - began > 0.15
    assert (tmp_path / "latest").read_text() in ("step-00000001", "step-00000002")
    run.saver.join()
    assert (tmp_path / "latest").read_text() == "step-00000002"
    assert len(run.saver.work) == 0


def test_the_same_step_is_saved_once(tmp_path):
    run = Training(tmp_path, step=3)
    run.save(3)
    run.saver.join()
    assert not (tmp_path / "step-00000003").exists(), "it was loaded from there"
    run.save(4)
    run.save(4)
    assert len(run.saver.work) == 1
    run.saver.join()


def test_an_error_of_the_thread_fails_the_training_with_one_line(tmp_path):
    root = tmp_path / "run"
    root.write_text("a file in the way")
    run = Training(tmp_path / "run" / "checkpoints")
    run.save(1)
    end = time.monotonic() + 20
    while not run.saver.failed() and time.monotonic() < end:
        time.sleep(0.01)
    assert run.saver.failed()
    with pytest.raises(UniclError, match=r"step-00000001: the checkpoint could not be written: .*Not a directory") as e:
        run.save(2)
    assert e.value.exit_code == 2
    assert "lower checkpoint.keep" in e.value.hint


def test_a_fault_in_the_thread_is_not_hidden(tmp_path):
    run = Training(tmp_path)
    run.save(1, unknown=object())
    run.saver.name_newest("best")
    with pytest.raises(TypeError, match="not JSON serializable"):
        run.saver.join()
    assert not (tmp_path / "best").exists(), "it would name what is not there"


def test_best_is_named_when_its_checkpoint_is_whole(tmp_path, held):
    run = Training(tmp_path)
    run.save(5)
    run.saver.name_newest("best")
    time.sleep(0.05)
    assert not (tmp_path / "best").exists()
    held.set()
    run.saver.join()
    assert (tmp_path / "best").read_text() == "step-00000005"


def test_going_back_leaves_no_trace_of_the_course_that_was_taken(tmp_path):
    run = Training(tmp_path)
    for step in (2, 4, 6, 8):
        run.save(step)
        run.saver.name_newest("best")
    run.saver.go_back_to(tmp_path / "step-00000004")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000004"]
    assert (tmp_path / "latest").read_text() == "step-00000004"
    run.step()
    run.save(6)
    run.saver.join()
    assert equal(read(tmp_path / "step-00000006"), run.tensors())


def test_what_another_course_left_of_the_same_step_is_replaced(tmp_path):
    """Crashed before `latest` was set, then resumed elsewhere: the folder is whole, and not of this course."""
    first, second = Training(tmp_path), Training(tmp_path)
    first.save(3)
    first.save(6)
    first.saver.join()
    (tmp_path / "latest").write_text("step-00000003")
    second.step()
    second.save(6)
    second.saver.join()
    assert equal(read(tmp_path / "step-00000006"), second.tensors())


def test_a_disk_that_is_going_to_be_too_small_is_told_once(tmp_path, monkeypatch):
    run = Training(tmp_path, keep=3)
    run.step()
    usage = saver.shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda path: usage)
    run.save(1)
    run.save(2)
    run.saver.join()
    (said,) = run.said
    assert said.startswith(f"warning: {tmp_path}: 48.8 KiB free, but its checkpoints (14.4 KiB each) will need 7")
    assert said.endswith("free some space or lower checkpoint.keep")
    plenty = Training(tmp_path, keep=1)
    plenty.save(3)
    plenty.saver.join()
    assert plenty.said == [], "what is there counts"
