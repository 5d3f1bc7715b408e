"""`unicl train` from the command to the run directory: what it writes, refuses, continues."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from launching import TINY, begun, until_step
from safetensors.torch import load_file

from unicl_cli.cli import main


@pytest.fixture
def recipe(tmp_path, monkeypatch, digits):
    """Writes the tiny recipe with some keys changed; the working directory is empty but for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])

    def write(name="tiny.yaml", corpus=digits, **changes):
        whole = json.loads(json.dumps(TINY | changes))
        whole["data"].setdefault("train", [{"corpus": str(corpus)}])
        Path(name).write_text(yaml.safe_dump(whole))
        return name

    return write


@pytest.fixture
def unicl(capfd):
    """(exit code, stdout, stderr) of a command in this process."""

    def run(*argv):
        code = main([str(word) for word in argv])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def same_weights(a, b):
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_directory_holds_everything(recipe, unicl, digits):
    code, out, err = unicl(
        "train", recipe(eval=[{"corpus": str(digits), "split": "test", "every": 4}]), "--run-dir", "run"
    )
    assert (code, out) == (0, "run\n")
    run = Path("run")
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} - {"run.lock"}
    files = ("model.safetensors", "optim.safetensors", "trainer.json")
    assert found == {
        *("recipe.yaml", "resolved.yaml", "overrides.txt", "env.json", "status.json", "metrics.jsonl", "eval.jsonl"),
        *("tokenizer.json", "classes.json", "model.safetensors", "meta.json", "checkpoints/latest"),
        *(f"checkpoints/step-0000000{n}/{f}" for n in (6, 8) for f in files),
    }
    assert (run / "checkpoints/latest").read_text() == "step-00000008"
    assert (run / "recipe.yaml").read_text() == Path("tiny.yaml").read_text()
    assert (run / "overrides.txt").read_text() == "run_dir=run\n"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"], status["world"]) == ("done", 8, 8, 1)
    facts = json.loads((run / "checkpoints/step-00000008/trainer.json").read_text())
    assert facts.keys() >= {"step", "seed", "batch_size", "micro", "world", "threads", "corpora", "versions", "files"}
    assert [c["key"] for c in json.loads((run / "classes.json").read_text())["classes"]] == [str(n) for n in range(10)]
    assert json.loads((run / "meta.json").read_text())["step"] == 8
    assert same_weights(run / "model.safetensors", run / "checkpoints/step-00000008/model.safetensors")
    assert [row["step"] for row in lines(run / "eval.jsonl")] == [4, 8]
    assert "step 8/8 100.0 % | loss" in err


def test_every_logged_line_has_the_names_of_the_contract(recipe, unicl):
    assert unicl("train", recipe(), "--run-dir", "run", "-q")[0] == 0
    rows = lines("run/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        assert row.keys() >= {
            *("time", "samples", "loss", "loss_per_image", "loss_per_text", "excess_loss", "lr", "logit_scale"),
            *("grad_norm", "img_s", "data_frac", "mem_gb", "label_share", "unique_text", "padding"),
        }
        assert row["samples"] == 12 * row["step"]
        assert row["label_share"] == 0.5
        assert 0 < row["excess_loss"] < row["loss"]
        assert row["loss"] == pytest.approx((row["loss_per_image"] + row["loss_per_text"]) / 2, rel=1e-6)
    assert [row["lr"] for row in rows[:2]] == pytest.approx([5e-4, 1e-3])


def test_the_same_command_on_a_finished_run_says_so(recipe, unicl):
    command = ("train", recipe(steps=2), "--run-dir", "run")
    assert unicl(*command)[0] == 0
    before = Path("run/metrics.jsonl").read_bytes()
    code, out, err = unicl(*command)
    assert (code, out) == (0, "run\n")
    assert "run: already finished" in err
    assert Path("run/metrics.jsonl").read_bytes() == before


def test_another_recipe_in_the_same_directory_is_refused(recipe, unicl):
    assert unicl("train", recipe(steps=2), "--run-dir", "run")[0] == 0
    before = Path("run/recipe.yaml").read_text()
    code, _, err = unicl("train", recipe(steps=2, seed=5, optim={"lr": 2e-3}), "--run-dir", "run")
    assert code == 2
    assert "error: run: was trained with another recipe (seed: 0 -> 5, optim.lr: 0.001 -> 0.002)" in err
    assert Path("run/recipe.yaml").read_text() == before
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"


def test_what_changes_no_number_may_change_between_two_commands(recipe, unicl):
    assert unicl("train", recipe(), "--run-dir", "run")[0] == 0
    code, _, err = unicl("train", "tiny.yaml", "--run-dir", "run", "log.every=5", "checkpoint.keep=1")
    assert code == 0
    assert "already finished" in err


def test_a_run_goes_on_from_a_checkpoint_to_the_same_weights(recipe, unicl):
    """Dropped to its first checkpoint, with the metrics of all steps: no step stands there twice."""
    command = ("train", recipe(model=TINY["model"] | {"logit_scale": {"init": 10.0}}))
    assert unicl(*command, "--run-dir", "whole", "checkpoint.every=2", "checkpoint.keep=9")[0] == 0
    shutil.copytree("whole", "cut")
    for n in (4, 6, 8):
        shutil.rmtree(f"cut/checkpoints/step-0000000{n}")
    for name in ("meta.json", "model.safetensors", "checkpoints/latest"):
        Path("cut", name).unlink()
    with Path("cut/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # killed while it was writing
    code, _, err = unicl(*command, "--run-dir", "cut", "checkpoint.every=2")
    assert code == 0
    assert "cut: continues after step 2 of 8" in err
    assert same_weights("whole/model.safetensors", "cut/model.safetensors")
    left, right = lines("whole/metrics.jsonl"), lines("cut/metrics.jsonl")
    assert [row["step"] for row in right] == list(range(1, 9))
    assert [row["loss"] for row in left] == [row["loss"] for row in right]


def test_a_run_starts_from_the_checkpoint_that_is_named(recipe, unicl):
    assert unicl("train", recipe(), "--run-dir", "run")[0] == 0
    code, _, err = unicl("train", "tiny.yaml", "--run-dir", "run", "--resume", "run/checkpoints/step-00000006")
    assert code == 0
    assert "continues after step 6 of 8" in err
    assert [row["step"] for row in lines("run/metrics.jsonl")] == list(range(1, 9))
    code, _, err = unicl("train", "tiny.yaml", "--run-dir", "run", "--resume", "run/checkpoints/step-00000001")
    assert code == 2
    assert "step-00000001: not a whole checkpoint" in err
    assert unicl("train", "tiny.yaml", "--run-dir", "other", "--resume", "run/checkpoints/step-00000006")[0] == 0
    assert same_weights("run/model.safetensors", "other/model.safetensors")
    assert unicl("train", "tiny.yaml", "--run-dir", "run", "--resume", "other/checkpoints/step-00000008")[0] == 2
    code, _, err = unicl("train", "tiny.yaml", "--run-dir", "run", "--resume", "never")
    assert code == 2
    assert "run: the directory already holds checkpoints" in err


def test_a_corpus_that_has_changed_is_refused(recipe, unicl, digits):
    shutil.copytree(digits, "corpus")
    command = ("train", recipe(corpus="corpus"), "--run-dir", "run")
    assert unicl(*command)[0] == 0
    Path("run/meta.json").unlink()
    manifest = json.loads(Path("corpus/manifest.json").read_text())
    Path("corpus/manifest.json").write_text(json.dumps(manifest | {"license": "CC0"}))
    code, _, err = unicl(*command)
    assert code == 2
    assert "error: corpus: the corpus has changed since run/checkpoints/step-00000008 was written" in err


def test_a_corpus_is_no_place_for_a_run(recipe, unicl, digits):
    shutil.copytree(digits, "corpus")
    before = sorted(Path("corpus").rglob("*"))
    code, _, err = unicl("train", recipe(), "--run-dir", "corpus")
    assert (code, sorted(Path("corpus").rglob("*"))) == (2, before)
    assert "error: corpus: is a corpus, not a run directory" in err


def test_a_second_training_in_the_same_directory_is_refused(recipe, unicl):
    Path("run").mkdir()
    with FileLock("run/run.lock"):
        code, _, err = unicl("train", recipe(), "--run-dir", "run")
    assert code == 2
    assert "error: run: locked by another process" in err
    assert not Path("run/recipe.yaml").exists()


def test_a_batch_that_cannot_be_shared_is_refused_before_any_process_starts(recipe, unicl):
    code, _, err = unicl("train", recipe(), "--run-dir", "run", "--devices", "cpu:5")
    assert code == 2
    assert err.endswith("error: batch.size 12 cannot be shared by 5 processes\n  hint: use a multiple of 5\n")
    assert not Path("run").exists()


def test_a_dry_run_says_what_would_run_and_writes_nothing(recipe, unicl):
    code, out, _ = unicl("train", recipe(), "--dry-run", "--json", "--devices", "cpu:2")
    assert code == 0
    facts = json.loads(out)
    assert (facts["processes"], facts["batch"], facts["batch_per_process"]) == (2, 12, 6)
    assert (facts["steps"], facts["samples"], facts["rows"]) == (8, 96, {"labels": 60, "captions": 60})
    assert facts["parameters"] == sum(facts["parameters_of"].values()) + 1, "the scale"
    assert not Path("runs").exists()
    assert unicl("train", "tiny.yaml", "-q")[0] == 0
    (run,) = Path("runs").iterdir()
    assert json.loads((run / "meta.json").read_text())["parameters"] == facts["parameters"]
    assert str(run) == facts["run"]
    code, out, _ = unicl("train", "tiny.yaml", "--dry-run")
    assert code == 0
    assert "parameters" in out
    assert "logit_scale" not in out
    code, out, _ = unicl("train", "tiny.yaml", "--dry-run", "--resolved")
    assert code == 0
    assert "logit_scale" in out, "the recipe, then the table"


def test_json_prints_one_document(recipe, unicl):
    code, out, _ = unicl("train", recipe(steps=1), "--run-dir", "run", "--json")
    assert code == 0
    assert json.loads(out) == {"schema": "unicl/train/1", "run": "run"}


def test_one_class_and_nothing_else_is_refused(recipe, unicl, tmp_path):
    assert unicl("prepare", "--labels", "digits?classes=3&limit=30", "-o", tmp_path / "one")[0] == 0
    code, _, err = unicl("train", recipe(corpus=tmp_path / "one"), "--run-dir", "run")
    assert code == 2
    assert "one class and nothing else" in err


def test_stages_follow_each_other(recipe, unicl):
    stages = [{}, {"loss": "ce", "model": {"image": {"freeze": True}}, "data": {"views": 1}, "steps": 4}]
    model = TINY["model"] | {"text": None}
    data = TINY["data"] | {"views": 2, "mix": {"labels": 1.0}}
    command = ("train", recipe(stages=stages, model=model, loss="supcon", data=data), "--run-dir", "run")
    code, _, err = unicl(*command)
    assert code == 0, err
    first, last = load_file("run/stage-1/model.safetensors"), load_file("run/model.safetensors")
    trunk = [name for name in last if name.startswith("model.image.trunk.")]
    assert trunk
    assert all(torch.equal(first[name], last[name]) for name in trunk), "frozen in the second stage"
    assert [row["step"] for row in lines("run/metrics.jsonl")] == [1, 2, 3, 4]
    assert any(name.startswith("loss.head.") for name in last)
    assert "frozen, no loss reaches it: model.image.proj.weight" in err
    code, _, err = unicl(*command)
    assert (code, err.count("already finished")) == (0, 1)


def test_an_average_of_the_weights_is_kept_and_continued(recipe, unicl):
    command = ("train", recipe(ema={"decay": 0.5}))
    assert unicl(*command, "--run-dir", "whole", "checkpoint.keep=9")[0] == 0
    average, weights = load_file("whole/ema.safetensors"), load_file("whole/model.safetensors")
    assert average.keys() == weights.keys()
    assert any(not torch.equal(average[name], weights[name]) for name in weights)
    shutil.copytree("whole", "cut")
    for name in ("meta.json", "checkpoints/latest", "checkpoints/step-00000008/optim.safetensors"):
        Path("cut", name).unlink()
    code, _, err = unicl(*command, "--run-dir", "cut")
    assert code == 0
    assert "continues after step 6 of 8" in err
    assert "warning: skipping damaged checkpoint cut/checkpoints/step-00000008" in err
    assert same_weights("whole/ema.safetensors", "cut/ema.safetensors")
    Path("cut/meta.json").unlink()
    for optimizer in Path("cut/checkpoints").glob("step-*/optim.safetensors"):
        optimizer.write_bytes(b"")
    code, _, err = unicl(*command, "--run-dir", "cut")
    assert code == 2
    assert "cut/checkpoints: no checkpoint is whole (step-0000000" in err
    assert same_weights("whole/ema.safetensors", "cut/ema.safetensors"), "nothing was begun again"


def test_measuring_in_between_changes_no_weight(recipe, unicl, digits):
    """With BatchNorm, whose statistics an evaluation in training mode would move."""
    model = TINY["model"] | {"image": {"name": "timm", "model": "resnet10t"}}
    item = {"corpus": str(digits), "split": "test", "every": 1, "limit": 20}
    assert unicl("train", recipe(model=model, steps=3), "--run-dir", "a")[0] == 0
    assert unicl("train", recipe(model=model, steps=3, eval=[item]), "--run-dir", "b")[0] == 0
    assert same_weights("a/model.safetensors", "b/model.safetensors")
    assert len(lines("b/eval.jsonl")) == 3


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_model_in_which_nothing_learns_is_refused(recipe, unicl, dry):
    frozen = ("model.image.freeze=all", "model.text.freeze=all", "model.logit_scale.learn=false")
    code, _, err = unicl("train", recipe(), *frozen, "--run-dir", "run", *dry)
    assert code == 2
    assert "error: model: every parameter is frozen, nothing is left to train" in err


def test_views_that_the_loss_does_not_take_are_refused(recipe, unicl):
    code, _, err = unicl("train", recipe(), "data.views=2", "--run-dir", "run")
    assert code == 2
    assert "error: data.views: the loss takes one view per image, got 2" in err
    assert not Path("run").exists()


def test_a_tower_that_no_loss_reaches_is_named_once(recipe, unicl):
    code, _, err = unicl("train", recipe(loss="ce", steps=1), "--run-dir", "run")
    assert code == 0, err
    named = [line for line in err.splitlines() if line.startswith("frozen, no loss reaches it: ")]
    assert len(named) == 3, named
    assert any(re.search(r": model\.text\.\* \(\d+ parameters\)$", line) for line in named)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_own_code(recipe, unicl):
    model = TINY["model"] | {"logit_scale": {"init": 1e38, "max": 3e38}}
    code, _, err = unicl("train", recipe(model=model, guard={"max_bad_steps": 3}), "--run-dir", "run")
    assert code == 3
    assert "error: the loss or its gradient was not finite 4 times in a row, last at step 4" in err
    assert "warning: step 1: the loss is not finite: its update is skipped" in err
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"
    assert [row["step"] for row in lines("run/metrics.jsonl")] == [1, 2, 3]
    assert lines("run/metrics.jsonl")[0]["grad_norm"] is None


def test_what_needs_no_other_numbers_is_bit_equal(recipe, unicl):
    """Loader workers and where the run lies."""
    for name in ("a", "b"):
        assert unicl("train", recipe(steps=3), "--run-dir", name, "-q")[0] == 0
    assert same_weights("a/model.safetensors", "b/model.safetensors")
    assert unicl("train", recipe(steps=3, seed=1), "--run-dir", "c", "-q")[0] == 0
    assert not same_weights("a/model.safetensors", "c/model.safetensors")


def test_kernels_whose_result_varies_are_refused_if_asked_for(recipe, unicl):
    for wanted in (True, False):
        code, _, err = unicl("train", recipe(steps=1, deterministic=wanted), "--run-dir", f"run-{wanted}")
        assert code == 0, err
        assert torch.are_deterministic_algorithms_enabled() is wanted


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_on_request_a_run_says_so_and_goes_on(recipe, unicl, number):
    """On a terminal Ctrl-C reaches the whole process group, loader workers too."""
    command = ("train", recipe(steps=80), "checkpoint.every=1000", "--devices", "cpu:1", "--run-dir")
    running = begun(*command, "cut", "data.workers=1")
    until_step(running, Path("cut"), 3)
    os.killpg(running.pid, number)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 75, err
    assert "stopped after step" in err
    assert "Traceback" not in err
    status = json.loads(Path("cut/status.json").read_text())
    assert (status["state"], status["signal"]) == ("stopped", number)
    assert (Path("cut/checkpoints") / f"step-{status['step']:08d}").is_dir()
    for name in ("cut", "whole"):
        assert unicl(*command, name)[0] == 0
    assert same_weights("cut/model.safetensors", "whole/model.safetensors")
    assert [row["step"] for row in lines("cut/metrics.jsonl")] == list(range(1, 81))


def test_steps_without_a_negative_are_refused(recipe, unicl, tmp_path):
    """One class in all steps of labels, or one row in all: the loss would be 0 for ever."""
    for name, command in (
        ("mixed", ("--labels", "digits?classes=3&limit=30", "--captions", "digits?limit=30")),
        ("row", ("--captions", "digits?limit=1")),
    ):
        assert unicl("prepare", *command, "-o", tmp_path / name, "--holdout", "0")[0] == 0
    by_step = ("data.mix.by=step", "steps=2")
    code, _, err = unicl("train", recipe(corpus=tmp_path / "mixed"), *by_step, "--run-dir", "run")
    assert (code, "steps of labels (data.mix.by=step) have one class" in err) == (2, True)
    code, _, err = unicl("train", recipe(corpus=tmp_path / "row"), "--run-dir", "run")
    assert (code, "one row in all" in err) == (2, True)
