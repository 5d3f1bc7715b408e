"""A run that dies at any point of a save, or while its thread writes, goes on to the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from unicl_cli.core import checkpoint

POINTS = ("after_tmp", "before_rename", "before_latest")
RECIPE = """
name: crashed
data: {{train: [{{corpus: {corpus}}}], image_size: 16, augment: {{name: shift}}}}
model:
  image: {{name: cnn, width: {width}, stages: 2}}
  text: {{name: transformer, width: 16, layers: 1, heads: 2}}
  embed_dim: 16
  tokenizer: corpus
  context_length: 16
batch: {{size: 12}}
steps: 8
ema: {{decay: 0.9}}
schedule: {{warmup: 2}}
log: {{every: 1}}
checkpoint: {{every: 2, keep: 2}}
"""


def in_a_child(work):
    """The exit status of ``work()`` in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("point", POINTS)
def test_latest_never_names_what_is_not_whole(tmp_path, point):
    module = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    checkpoint.save(tmp_path, module, optimizer, {"step": 1}, keep=2)

    def dies():
        os.environ["UNICL_TEST_CRASH"] = point
        checkpoint.save(tmp_path, module, optimizer, {"step": 2}, keep=2)

    assert in_a_child(dies) == 9
    assert (tmp_path / "latest").read_text() == "step-00000001"
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"
    assert (tmp_path / "step-00000002").exists() == (point == "before_latest")
    checkpoint.save(tmp_path, module, optimizer, {"step": 2}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000002"]


def train(folder, name, *more, env=None, **options):
    words = [sys.executable, "-m", "unicl_cli", "train", str(folder / "r.yaml"), *more]
    words += ["--run-dir", str(folder / name), "--devices", "cpu:1", "-q"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=os.environ | (env or {}), **pipes, **options)


def finished(process):
    _, err = process.communicate(timeout=200)
    return process.returncode, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "r.yaml").write_text(RECIPE.format(corpus=digits, width=8))
    code, err = finished(train(folder, "run"))
    assert code == 0, err
    return folder / "run"


def same(one, other):
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return False
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    return [(r["step"], r["loss"], r["grad_norm"]) for r in rows[0]] == [
        (r["step"], r["loss"], r["grad_norm"]) for r in rows[1]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_dies_inside_a_save_ends_in_the_same_weights(tmp_path, digits, whole, point):
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus=digits, width=8))
    code, err = finished(train(tmp_path, "run", env={"UNICL_TEST_CRASH": f"{point}:step-00000004"}))
    assert code == 9, err
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000002"
    code, err = finished(train(tmp_path, "run"))
    assert code == 0, err
    assert "continues after step 2 of 8" in err
    assert same(whole, tmp_path / "run")
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_run_that_is_killed_while_its_thread_writes_ends_in_the_same_weights(tmp_path, digits):
    """80 MB at each save, so that the thread is at it for a while; killed while a part of it is there."""
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus=digits, width=640))
    code, err = finished(train(tmp_path, "whole"))
    assert code == 0, err
    for _ in range(3):
        process = train(tmp_path, "run", start_new_session=True)
        writing = tmp_path / "run" / "checkpoints"
        end = time.monotonic() + 100
        while time.monotonic() < end and process.poll() is None:
            if list(writing.glob(".tmp-*/*")) and (writing / "latest").exists():
                break
            time.sleep(0.001)
        assert process.poll() is None, process.communicate()[1]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert list(writing.glob(".tmp-*"))
        assert checkpoint.is_whole(writing / (writing / "latest").read_text())
    code, err = finished(train(tmp_path, "run"))
    assert code == 0, err
    assert same(tmp_path / "whole", tmp_path / "run")
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_writes_the_finished_model_is_finished_by_the_next(tmp_path, digits):
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus=digits, width=640))
    process = train(tmp_path, "run", "steps=2", start_new_session=True)
    run, end = tmp_path / "run", time.monotonic() + 100
    while time.monotonic() < end and process.poll() is None and not list(run.glob("model.safetensors*")):
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(run.glob("model.safetensors*.tmp"))
    assert not (run / "meta.json").exists()
    code, err = finished(train(tmp_path, "run", "steps=2"))
    assert code == 0, err
    assert "continues after step 2 of 2" in err
    assert (run / "meta.json").exists()
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob(".tmp-*"))
