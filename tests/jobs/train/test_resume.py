"""What a run goes on with: the history of its guards, skipped samples, counts; spikes that it went back from."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from launching import TINY, begun, ended, same_rows
from launching import same as same_weights

from unicl_cli.cli import main
from unicl_cli.core import checkpoint_files

PLUGIN = """
def spiking(*, steps: list[int], factor: float = 50.0, bad: bool = False):
    from unicl_cli.losses.unicl import UniCL

    class Spiking(UniCL):
        def forward(self, model, batch):
            out = super().forward(model, batch)
            if int(batch.draws[0]) // 12 in steps:  # the samples are to blame, whenever they are drawn
                out["loss"] = out["loss"] * (float("nan") if bad else factor)
            return out
    return Spiking()

PARTS = {"losses": {"spiking": spiking}}
"""
RECIPE = TINY | {
    "model": TINY["model"] | {"text": {"name": "cbow", "width": 16}},
    "steps": 40,
    "checkpoint": {"every": 5, "keep": 9},
}
ROLLBACK = ["guard.on_spike=rollback"]


@pytest.fixture
def unicl(tmp_path, monkeypatch, capfd, digits):
    """``unicl(run, changes)``: exit code and what was said; ``crash`` = where a process of its own dies."""
    from unicl_cli import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    Path("plugin.py").write_text(PLUGIN)
    Path("r.yaml").write_text(yaml.safe_dump(RECIPE | {"data": RECIPE["data"] | {"train": [{"corpus": str(digits)}]}}))

    def run(name, *changes, crash=None):
        words = ["train", "r.yaml", "--run-dir", name, "--devices", "cpu:1", *changes]
        if crash is None:
            code = main(words)
            err = capfd.readouterr().err
            print(err)
            return code, err
        # not a fork: a process whose autograd has threads by an earlier test cannot train in one
        code, _, err = ended(begun(*words, env={"UNICL_TEST_CRASH": crash}))
        print(err)
        return code, err

    monkeypatch.setenv("UNICL_PLUGINS", str(tmp_path / "plugin.py"))
    registry.forget()
    yield run
    monkeypatch.undo()
    registry.forget()


def spiking(*steps, **options):
    return f"loss={json.dumps({'name': 'spiking', 'steps': steps, **options})}"


def lines(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def facts(run, step):
    return checkpoint_files.read_facts(checkpoint_files.folder_of(Path(run, "checkpoints"), step))


def same(one, other):
    return same_weights(Path(one), Path(other)) and same_rows(Path(one), Path(other))


def cut(run, name, step):
    """The run as a kill after step ``step`` leaves it."""
    shutil.copytree(run, name)
    for folder in Path(name, "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    Path(name, "checkpoints", "latest").write_text(f"step-{step:08d}")
    for gone in ("meta.json", "model.safetensors"):
        Path(name, gone).unlink(missing_ok=True)


def test_a_spike_is_warned_of_with_the_sources_of_its_batch(unicl):
    code, err = unicl("run", spiking(27, 28, 29), "steps=32")
    assert code == 0, err
    said = [line for line in err.splitlines() if line.startswith("warning: step")]
    assert len(said) == 2, "of the loss and of the gradient norm"
    assert said[0].startswith("warning: step 30: the loss is ")
    assert said[0].endswith("; the batch: corpus/digits-2-captions 50%, corpus/digits-labels 50%")
    assert unicl("quiet", spiking(27, 28, 29), "steps=32", "guard.on_spike=ignore")[1].count("warning") == 0


def test_a_run_goes_back_before_a_spike_and_leaves_its_samples_out(unicl):
    code, err = unicl("run", spiking(27, 28, 29), *ROLLBACK)
    assert code == 0, err
    assert "back to step 25; skipping the samples of 5 steps (rollback 1 of 3)" in err
    assert [row["step"] for row in lines("run")] == list(range(1, 41))
    assert max(row["loss"] for row in lines("run")) < 10, "no line of the spike is left"
    assert (facts("run", 25)["offset"], facts("run", 30)["offset"], facts("run", 40)["offset"]) == (0, 5, 5)
    assert facts("run", 40)["guard"]["rollbacks"] == 1
    unicl("calm", spiking(99))
    cut("calm", "moved", 25)
    changed = Path("moved/checkpoints/step-00000025/trainer.json")
    changed.write_text(changed.read_text().replace('"offset": 0', '"offset": 5'))
    shutil.copyfile("run/resolved.yaml", "moved/resolved.yaml")
    assert unicl("moved", spiking(27, 28, 29), *ROLLBACK)[0] == 0
    assert same("run", "moved"), "the steps after it are those of a run that takes other samples from there"


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before_rename:step-00000030", "before_latest:step-00000035"])
def test_cut_after_a_rollback_a_run_ends_in_the_same_weights(unicl, point):
    """At step 30 nothing has been saved since the rollback: the spike is met and left once more."""
    assert unicl("whole", spiking(27, 28, 29), *ROLLBACK)[0] == 0
    changes = [spiking(27, 28, 29), *ROLLBACK]
    if point.endswith("30"):
        changes.append("checkpoint.asynchronous=false")
    assert unicl("cut", *changes, crash=point)[0] == 9
    assert unicl("cut", *changes)[0] == 0
    assert same("whole", "cut")


@pytest.mark.slow
def test_too_many_rollbacks_end_the_run(unicl):
    code, err = unicl("run", spiking(*range(27, 99)), *ROLLBACK, "guard.max_rollbacks=2")
    assert code == 3
    assert err.count("back to step 25") == 2
    assert "rose far above its usual values once more, after 2 rollbacks" in err
    found = json.loads(Path("run/crash/step-29/evidence.json").read_text())
    assert (found["step"], found["offset"]) == (29, 9)
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"
    assert checkpoint_files.newest(Path("run/checkpoints")).name == "step-00000025"


@pytest.mark.slow
def test_without_a_checkpoint_from_before_it_goes_on(unicl):
    code, err = unicl("run", spiking(27, 28, 29), *ROLLBACK, "checkpoint.every=29")
    assert code == 0
    assert "warning: no checkpoint is from before step 27: the run continues without a rollback" in err
    assert [row["step"] for row in lines("run")] == list(range(1, 41))


@pytest.mark.slow
def test_decisions_of_a_resumed_run_are_those_of_one_that_was_never_cut(unicl):
    """Two high lines before the cut, one after it: only with its history is that a spike."""
    assert unicl("whole", spiking(28, 29, 30), *ROLLBACK)[0] == 0
    assert facts("whole", 40)["guard"]["rollbacks"] == 1
    assert unicl("cut", spiking(28, 29, 30), *ROLLBACK, crash="before_rename:step-00000035")[0] == 9
    cut("cut", "again", 30) if Path("cut/checkpoints/step-00000030").exists() else shutil.copytree("cut", "again")
    code, err = unicl("again", spiking(28, 29, 30), *ROLLBACK)
    assert code == 0, err
    assert same("whole", "again")


def test_bad_steps_before_a_cut_count_after_it(unicl):
    bad = spiking(2, 8, 9, bad=True)
    limit = "guard.max_bad_share=0.0002"
    assert unicl("whole", bad, limit)[0] == 3
    evidence = Path("crash/step-10/evidence.json")
    assert "not finite 3 times in 10,000 steps" in Path("whole", evidence).read_text()
    cut("whole", "again", 5)
    assert unicl("again", bad, limit)[0] == 3
    assert Path("again", evidence).read_text() == Path("whole", evidence).read_text()
    found = json.loads(Path("whole", evidence).read_text())
    assert found["draws"] == list(range(108, 120))
    assert found["values"]["loss"] == ["nan"]
    assert len(found["gradient_norms"]) > 3


def test_a_run_may_stop_at_the_first_bad_step(unicl):
    code, err = unicl("run", spiking(3, bad=True), "guard.on_bad=stop")
    assert code == 3
    assert "error: the loss or its gradient was not finite once, last at step 4" in err


@pytest.mark.slow
def test_samples_tokens_and_the_best_figure_are_counted_through_cuts(unicl, digits):
    more = [f"eval=[{{corpus: {digits}, split: test, every: 5}}]", "checkpoint.best={}", "steps=15"]
    assert unicl("whole", spiking(99), *more)[0] == 0
    cut("whole", "again", 5)
    assert facts("again", 5)["tokens"] < facts("whole", 15)["tokens"]
    assert unicl("again", spiking(99), *more)[0] == 0
    one, other = facts("whole", 15), facts("again", 15)
    assert (one["samples"], one["tokens"]) == (other["samples"], other["tokens"])
    assert one["samples"] == 180
    assert one["best"] == other["best"] != None  # noqa: E711
    assert Path("whole/checkpoints/best").read_text() == Path("again/checkpoints/best").read_text()


@pytest.mark.slow
def test_loader_workers_and_the_way_of_saving_change_no_bit(unicl):
    """Cut and gone on with another number of workers each time, in a process of its own."""
    assert unicl("whole", spiking(99), "steps=12", "data.workers=0")[0] == 0
    assert unicl("cut", spiking(99), "steps=12", "data.workers=1", crash="before_latest:step-00000010")[0] == 9
    assert unicl("cut", spiking(99), "steps=12", "data.workers=2", "checkpoint.asynchronous=false")[0] == 0
    assert same("whole", "cut")


def test_a_checkpoint_that_is_due_by_the_clock_comes_at_the_next_step(unicl):
    more = ["steps=4", "checkpoint.every=1000", "checkpoint.minutes=1e-9"]
    assert unicl("run", spiking(99), *more)[0] == 0
    assert [p.name[-1] for p in sorted(Path("run/checkpoints").glob("step-*"))] == ["1", "2", "3", "4"]
