"""A run that dies at any point of a save, or of its end, goes on to the same weights, bit for bit."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from unicl_cli.core import checkpoint

POINTS = ("after_tmp", "before_rename", "before_latest")
RECIPE = """
name: crashed
data: {{train: [{{corpus: {corpus}}}], image_size: 16, augment: {{name: shift}}}}
model:
  image: {{name: cnn, width: 8, stages: 2}}
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
    (folder / "r.yaml").write_text(RECIPE.format(corpus=digits))
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
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus=digits))
    code, err = finished(train(tmp_path, "run", env={"UNICL_TEST_CRASH": f"{point}:step-00000004"}))
    assert code == 9, err
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000002"
    code, err = finished(train(tmp_path, "run"))
    assert code == 0, err
    assert "continues after step 2 of 8" in err
    assert same(whole, tmp_path / "run")
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_run_that_dies_while_it_writes_the_finished_model_is_finished_by_the_next(tmp_path, digits, whole):
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus=digits))
    code, err = finished(train(tmp_path, "run", env={"UNICL_TEST_CRASH": "half_written:run"}))
    assert code == 9, err
    run = tmp_path / "run"
    assert list(run.glob("model.safetensors.*.tmp"))
    assert not (run / "meta.json").exists()
    code, err = finished(train(tmp_path, "run"))
    assert code == 0, err
    assert "continues after step 8 of 8" in err
    assert (run / "meta.json").exists()
    assert same(whole, run)
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob(".tmp-*"))
