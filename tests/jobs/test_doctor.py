"""`unicl doctor`: each line says ok, note or problem, and a problem ends in exit status 1."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unicl_cli.cli import main
from unicl_cli.jobs import doctor
from unicl_cli.jobs.doctor import NOTE, OK, PROBLEM


def test_this_machine_can_train_and_every_fact_is_there(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["ok"]) == ("unicl/doctor/1", True)
    checks = {check["name"]: check for check in document["checks"]}
    wanted = {"python", "unicl", "packages", "platform", "cores", "disk here", "disk temp", "hub", "launcher"}
    assert wanted | {"trackers", "plugins", "torch", "cpu", "processes", "train"} <= set(checks)
    assert {check["state"] for check in checks.values()} <= {OK, NOTE}
    assert f"torch {torch.__version__.split('+')[0]}" in checks["packages"]["text"]
    assert checks["cpu"]["text"].endswith("a training step works")
    assert "gloo" in checks["processes"]["text"]


def test_the_table_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if "/" not in line), "but for a path that no line holds"
    assert all(line.startswith((OK, NOTE, " ")) for line in lines)


def test_nothing_is_written_and_no_generator_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    doctor.run_checks()
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_cannot_be_imported_is_a_problem_and_exit_status_1(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "unicl_cli", "doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "problem torch" in " ".join(done.stdout.split())
    assert "OSError: libcudart.so" in " ".join(done.stdout.split())
    assert done.stderr == "1 problem: training cannot work here\n"


def test_a_driver_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    cuda = SimpleNamespace(is_available=lambda: False)
    (old,) = doctor.check_driver(SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.2")))
    assert (old.state, "update the driver" in old.hint) == (PROBLEM, True)
    (plain,) = doctor.check_driver(SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=None)))
    assert (plain.state, plain.hint) == (NOTE, "install torch's CUDA build")


def test_a_device_whose_step_fails_says_why():
    check = doctor.try_device(torch, "meta", lambda: "a device without numbers")
    assert check.state == PROBLEM
    assert check.text.startswith("a training step failed: ")


def test_variables_of_launchers_are_named():
    assert doctor.check_launcher({}).text == "no launcher variables are set"
    text = doctor.check_launcher({"SLURM_NTASKS": "8", "UNICL_MODEL": "x", "SECRET": "s"}).text
    assert text == "SLURM_NTASKS=8, UNICL_MODEL=x"


@pytest.mark.parametrize(
    ("environ", "state", "said"),
    [
        ({}, OK, "unicl train works in this process (on the CPU)"),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, NOTE, "unicl train joins as rank 1 of 4"),
        ({"RANK": "1"}, NOTE, "RANK is ignored without WORLD_SIZE and MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, PROBLEM, "MASTER_ADDR: not set"),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "4"}, NOTE, "using one of the 4 nodes"),
    ],
)
def test_what_train_would_do_is_said(environ: dict[str, str], state: str, said: str):
    check = doctor.check_launch(environ, int)
    assert check.state == state
    assert said in f"{check.text} {check.hint}"


def test_threads_and_offline_switches_are_notes():
    assert doctor.check_cores({"OMP_NUM_THREADS": "999"}).state == NOTE
    assert doctor.check_cores({"OMP_NUM_THREADS": "many"}).state == NOTE
    assert doctor.check_cores({}).state == OK
    offline = doctor.check_hub_cache({"HF_HOME": "/nowhere", "HF_HUB_OFFLINE": "1"})
    assert (offline.state, offline.text.startswith("/nowhere/hub: 0 models")) == (NOTE, True)


def test_a_broken_plugin_is_a_note(distribution, capsys: pytest.CaptureFixture[str]):
    distribution("unicl-crash", "import nowhere_to_be_found", losses="crash = unicl_crash:f")
    found = [check for check in doctor.check_plugins() if check.state == NOTE]
    assert [check.text.split(":")[0] for check in found] == ["losses/crash"]
