"""A run that dies at any point of a save, or of its end, goes on to the same weights, bit for bit."""

import multiprocessing
import os

import pytest
import torch
from launching import begun, ended, here, nothing_half_written, recipe, same, same_rows

from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.storage.files import is_leftover

POINTS = ("after_tmp", "before_rename", "before_latest")
ONE = ("--devices", "cpu:1")


def die_in_the_second_save(root, point):
    module = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    checkpoint.save(root, module, optimizer, {"step": 1}, keep=2)
    os.environ["UNICL_TEST_CRASH"] = point
    checkpoint.save(root, module, optimizer, {"step": 2}, keep=2)


@pytest.fixture(scope="module")
def died(tmp_path_factory):
    """A folder of checkpoints for each point, and the exit codes."""
    folder = tmp_path_factory.mktemp("died")
    found = {}
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)  # imports torch's compiler, here once for all forks
    for point in POINTS:
        child = multiprocessing.get_context("fork").Process(target=die_in_the_second_save, args=(folder / point, point))
        child.start()
        child.join()
        found[point] = folder / point, child.exitcode
    return found


@pytest.mark.parametrize("point", POINTS)
def test_latest_never_names_what_is_not_whole(died, point):
    root, code = died[point]
    assert code == 9
    assert (root / "latest").read_text() == "step-00000001"
    assert checkpoint_files.newest(root) == root / "step-00000001"
    assert (root / "step-00000002").exists() == (point == "before_latest")
    module = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    checkpoint.save(root, module, optimizer, {"step": 2}, keep=2)
    assert sorted(p.name for p in root.iterdir()) == ["latest", "step-00000001", "step-00000002"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """(recipe, run that nothing disturbed)."""
    folder = tmp_path_factory.mktemp("whole")
    file = recipe(folder, digits, steps=8, every=2, optimizer="adamw", ema={"decay": 0.9})
    here("train", file, "--run-dir", folder / "run", *ONE)
    return file, folder / "run"


def crashed(file, run, point):
    code, _, err = ended(begun("train", file, "--run-dir", run, *ONE, env={"UNICL_TEST_CRASH": point}))
    assert code == 9, err


def gone_on(file, run, whole, capfd):
    """What the same command says; the run has to end as the undisturbed one."""
    here("train", file, "--run-dir", run, *ONE)
    assert same(whole, run)
    assert same(whole, run, "ema.safetensors")
    assert same_rows(whole, run)
    nothing_half_written(run)
    return capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_dies_inside_a_save_ends_in_the_same_weights(tmp_path, whole, capfd, point):
    (file, undisturbed), run = whole, tmp_path / "run"
    crashed(file, run, f"{point}:step-00000004")
    assert (run / "checkpoints/latest").read_text() == "step-00000002"
    assert "continues after step 2 of 8" in gone_on(file, run, undisturbed, capfd)


@pytest.mark.slow
def test_a_run_that_dies_while_it_writes_the_finished_model_is_finished_by_the_next(tmp_path, whole, capfd):
    (file, undisturbed), run = whole, tmp_path / "run"
    crashed(file, run, "half_written:run")
    assert [file for file in run.iterdir() if is_leftover(file)]
    assert not (run / "meta.json").exists()
    assert "continues after step 8 of 8" in gone_on(file, run, undisturbed, capfd)
    assert (run / "meta.json").exists()
