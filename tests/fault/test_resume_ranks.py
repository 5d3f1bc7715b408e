"""Two processes: they save, fail, stop and go back together, and hand over to one process and back."""

import json
from pathlib import Path

import pytest
import yaml
from launching import begun, ended, max_difference
from launching import same as same_weights

from tests.jobs.train.test_resume import PLUGIN, RECIPE, ROLLBACK, facts, lines, same, spiking
from unicl_cli import registry
from unicl_cli.cli import main

pytestmark = pytest.mark.slow
SGD = {"name": "sgd", "lr": 0.01}  # AdamW makes steps of the rounding noise of what has no gradient


@pytest.fixture
def unicl(tmp_path, monkeypatch, digits, capfd):
    """``unicl(run, processes, changes)``: exit code and what was said; one process that need not die is this one."""
    monkeypatch.chdir(tmp_path)
    Path("plugin.py").write_text(PLUGIN)
    monkeypatch.setenv("UNICL_PLUGINS", str(tmp_path / "plugin.py"))
    registry.forget()
    data = RECIPE["data"] | {"train": [{"corpus": str(digits)}]}
    Path("r.yaml").write_text(yaml.safe_dump(RECIPE | {"data": data, "optim": SGD}))

    def run(name, processes, *changes, crash=None):
        words = ["train", "r.yaml", *changes, "--run-dir", name, "--devices", f"cpu:{processes}"]
        if processes == 1 and crash is None:
            return main(words), capfd.readouterr().err
        code, _, err = ended(begun(*words, env={"UNICL_TEST_CRASH": crash} if crash else None), timeout=500)
        return code, err

    yield run
    monkeypatch.undo()
    registry.forget()


def far(one, other):
    return max_difference(Path(one), Path(other))


def test_two_processes_go_back_together_and_end_where_one_does(unicl):
    changes = [spiking(27, 28, 29), *ROLLBACK, "steps=36"]
    for name, processes in (("one", 1), ("two", 2)):
        code, err = unicl(name, processes, *changes)
        assert code == 0, err
        assert err.count("back to step 25; skipping the samples of 5 steps") == 1
    assert far("one", "two") < 1e-4
    assert [row["step"] for row in lines("two")] == list(range(1, 37))
    assert [row["positives"] for row in lines("two")] == [row["positives"] for row in lines("one")]
    assert facts("two", 36)["guard"]["rollbacks"] == 1


def test_one_then_two_then_one_process_end_where_one_does(unicl):
    changes = [spiking(99), "steps=16"]
    assert unicl("whole", 1, *changes)[0] == 0
    assert unicl("parts", 1, *changes, crash="before_rename:step-00000010")[0] != 0
    assert unicl("parts", 2, *changes, crash="before_rename:step-00000015")[0] != 0
    code, err = unicl("parts", 1, *changes)
    assert code == 0, err
    assert "continues after step 10 of 16" in err
    assert 0 < far("whole", "parts") < 1e-4
    assert [row["step"] for row in lines("parts")] == list(range(1, 17))


def test_what_two_processes_wrote_goes_on_bit_for_bit(unicl):
    changes = [spiking(99), "steps=14", "parallel.strategy=fsdp2", "ema={decay: 0.9}"]
    assert unicl("whole", 2, *changes)[0] == 0
    assert unicl("cut", 2, *changes, crash="before_latest:step-00000010")[0] != 0
    assert unicl("cut", 2, *changes)[0] == 0
    assert same("whole", "cut")
    assert same_weights(Path("whole"), Path("cut"), "ema.safetensors")


def test_a_write_that_fails_behind_the_training_ends_all_processes_with_one_line(unicl):
    Path("run").mkdir()
    Path("run/run.lock").write_text("unicl: pid 1 on here\n")
    Path("run/checkpoints").symlink_to("/proc")  # a folder in which nothing can be made
    code, err = unicl("run", 2, spiking(99))
    assert code == 2, err
    assert err.count("error: ") == 1
    assert "step-00000005: the checkpoint could not be written: [Errno 2] No such file or directory" in err
    assert "Traceback" not in err
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"
    assert [row["step"] for row in lines("run")] in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]), "soon, not at the end"
