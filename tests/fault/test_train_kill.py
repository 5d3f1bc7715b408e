"""Killed at any moment, the same `train` command ends in the same weights, and no step is logged twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

RECIPE = """
name: killed
data: {{train: [{{corpus: {corpus}}}], image_size: 16, augment: {{name: shift}}}}
model:
  image: {{name: cnn, width: 8, stages: 2}}
  text: {{name: transformer, width: 16, layers: 1, heads: 2}}
  embed_dim: 16
  tokenizer: corpus
  context_length: 16
batch: {{size: 12}}
steps: {steps}
ema: {{decay: 0.9}}
schedule: {{warmup: 5}}
log: {{every: 1}}
checkpoint: {{every: 1, keep: 2}}
"""


def command(folder, name):
    return [sys.executable, "-m", "unicl_cli", "train", str(folder / "r.yaml"), "--run-dir", str(folder / name), "-q"]


def logged(run):
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


def kill_in_the_middle(argv, run, rng, steps):
    """Kill -9 the process group a few steps on; whether it was still at work, and whether it was inside a save."""
    process = subprocess.Popen(
        argv, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    start = logged(run)
    end = time.monotonic() + 120
    while process.poll() is None and logged(run) in (start, 0) and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.15))
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate()
    assert alive or process.returncode == 0, err
    return alive, bool(list((run / "checkpoints").glob(".tmp-*")))


def killed_until_done(folder, digits, *, times, steps, seed):
    (folder / "r.yaml").write_text(RECIPE.format(corpus=digits, steps=steps))
    subprocess.run(command(folder, "whole"), check=True, capture_output=True)
    rng, run = random.Random(seed), folder / "cut"
    kills = [kill_in_the_middle(command(folder, "cut"), run, rng, steps) for _ in range(times)]
    done = subprocess.run(command(folder, "cut"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "ema.safetensors"):
        whole, cut = load_file(folder / "whole" / name), load_file(run / name)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
    rows = [
        [json.loads(line) for line in (folder / n / "metrics.jsonl").read_text().splitlines()] for n in ("whole", "cut")
    ]
    assert [row["step"] for row in rows[1]] == list(range(1, steps + 1))
    for key in ("loss", "grad_norm", "lr", "logit_scale", "unique_text"):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]]
    assert not list(run.rglob(".tmp-*"))
    assert not list(run.rglob("*.part"))
    return sum(alive for alive, _ in kills), sum(inside for _, inside in kills)


def test_killed_a_run_ends_in_the_same_weights(tmp_path, digits):
    alive, _ = killed_until_done(tmp_path, digits, times=1, steps=30, seed=0)
    assert alive == 1


@pytest.mark.slow
def test_killed_twenty_times_a_run_ends_in_the_same_weights(tmp_path, digits, record_property):
    alive, inside = killed_until_done(tmp_path, digits, times=20, steps=200, seed=1)
    record_property("kills inside a save", inside)
    print(f"{alive} of 20 kills met a run at work, {inside} of them inside a save")
    assert alive == 20
    assert inside > 0
