"""Killed at any moment, the same `train` command ends in the same weights, and no step is logged twice.

``RANDOM_KILLS=50`` kills so often where it is not once.
"""

import os
import random
import signal
import time

import pytest
from launching import begun, here, kill_all, nothing_half_written, recipe, same, same_rows, steps_of, until_step

from unicl_cli.core.checkpoint_files import newest

KILLS = int(os.environ.get("RANDOM_KILLS", "3"))


def killed(words, run, rng):
    """Kill -9 the process group a few steps on; whether it was still at work, and whether it was inside a save."""
    process = begun(*words)
    until_step(process, run, len(steps_of(run)) + 4)
    time.sleep(rng.uniform(0, 0.15))
    alive = process.poll() is None
    kill_all(process)
    _, err = process.communicate()
    assert process.returncode == (-signal.SIGKILL if alive else 0), err
    return alive, bool(list((run / "checkpoints").glob(".unicl-*.tmp")))


def killed_until_done(folder, digits, *, times, steps, seed, **changes):
    file = recipe(folder, digits, steps=steps, every=1, optimizer="adamw", ema={"decay": 0.9}, **changes)
    whole, cut, one = folder / "whole", folder / "cut", ("--devices", "cpu:1", "-q")
    here("train", file, "--run-dir", whole, *one)
    rng, words = random.Random(seed), ("train", file, "--run-dir", cut, *one)
    kills = [killed(words, cut, rng) for _ in range(times)]
    assert newest(cut / "checkpoints") is not None, "or nothing of it would be used"
    here(*words)
    assert same(whole, cut)
    assert same(whole, cut, "ema.safetensors")
    assert steps_of(cut) == list(range(1, steps + 1))
    assert same_rows(whole, cut)
    nothing_half_written(cut)
    return sum(alive for alive, _ in kills), sum(inside for _, inside in kills)


CAPTIONER = {"name": "captioner", "width": 16, "layers": 1, "heads": 2, "drop_image": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize("loss", [CAPTIONER, {"name": "bow"}], ids=lambda loss: loss["name"])
def test_killed_a_run_without_a_text_tower_ends_in_the_same_weights(tmp_path, digits, loss):
    """The captioner draws which images it hides, and bow counts the words of all steps."""
    model = {"image": {"name": "cnn", "width": 8, "stages": 2}, "text": None, "embed_dim": 16}
    alive, _ = killed_until_done(tmp_path, digits, times=1, steps=25, seed=0, loss=loss, model=model)
    assert alive == 1


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_in_the_same_weights(tmp_path, digits, record_property):
    alive, inside = killed_until_done(tmp_path, digits, times=KILLS, steps=30 * KILLS, seed=1)
    record_property("kills inside a save", inside)
    print(f"{alive} of {KILLS} kills met a run at work, {inside} of them inside a save")
    assert alive == KILLS
