"""Checkpoints: whole or absent, found again, refused where they do not fit."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.ema import Average
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import temporary_name

FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from unicl_cli.core import checkpoint
from unicl_cli.errors import UniclError
module = torch.nn.Linear(100, 100)
optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
root = Path(sys.argv[1])
checkpoint.save(root, module, optimizer, {"step": 1}, keep=1)
for limit in sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        checkpoint.save(root, module, optimizer, {"step": 2}, keep=1)
    except UniclError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(error.exit_code, *sorted(p.name for p in root.iterdir()), error.message)
"""


class Tied(nn.Module):
    """With a shared weight, a buffer, a number of steps and BatchNorm's statistics."""

    def __init__(self, width=4):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width)
        self.last.weight = self.first.weight
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("lost", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def trained(seed=0, steps=3, width=4):
    torch.manual_seed(seed)
    module = Tied(width)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    return more(module, optimizer, steps)


def more(module, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        module(
            torch.randn(8, module.first.in_features, generator=torch.Generator().manual_seed(step))
        ).square().mean().backward()
        optimizer.step()
    return module, optimizer


def saved(root, *steps, keep=9):
    module, optimizer = trained()
    for step in steps:
        checkpoint.save(root, module, optimizer, {"step": step}, keep)
    return module, optimizer


def test_weights_and_optimizer_come_back_bit_for_bit(tmp_path):
    module, optimizer = saved(tmp_path, 7)
    folder = checkpoint_files.newest(tmp_path)
    assert folder == tmp_path / "step-00000007"
    other, theirs = trained(seed=5, steps=1)
    checkpoint.load_weights(other, checkpoint.read_tensors(folder / checkpoint_files.MODEL), "x")
    checkpoint.load_optimizer(other, theirs, folder / checkpoint_files.OPTIM)
    more(module, optimizer, 3)
    more(other, theirs, 3)
    for (name, a), (_, b) in zip(module.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert checkpoint_files.read_facts(folder)["step"] == 7


def test_a_shared_tensor_is_saved_once_and_a_passing_buffer_never(tmp_path):
    saved(tmp_path, 1)
    names = set(checkpoint.read_tensors(tmp_path / "step-00000001" / checkpoint_files.MODEL))
    assert "first.weight" in names
    assert "kept" in names
    assert not names & {"last.weight", "lost"}


def test_only_the_newest_stay_and_half_written_ones_go(tmp_path):
    (temporary_name(tmp_path) / "inside").mkdir(parents=True)
    saved(tmp_path, 1, 2, 3, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    saved(tmp_path, 1, keep=2)  # continued from before
    assert checkpoint_files.newest(tmp_path) == tmp_path / "step-00000001", "what was written last is never pruned"


def spoil_size(folder):
    with (folder / checkpoint_files.MODEL).open("r+b") as file:
        file.truncate(100)


def spoil_byte(folder):
    data = bytearray((folder / checkpoint_files.OPTIM).read_bytes())
    data[-1] ^= 1
    (folder / checkpoint_files.OPTIM).write_bytes(data)


def spoil_json(folder):
    (folder / checkpoint_files.TRAINER).write_text('{"files": [')


def spoil_names(folder):
    (folder / checkpoint_files.TRAINER).write_text('{"files": []}')


def lose_file(folder):
    (folder / checkpoint_files.MODEL).unlink()


@pytest.mark.parametrize("spoil", [spoil_size, spoil_byte, spoil_json, spoil_names, lose_file, shutil.rmtree])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, spoil):
    saved(tmp_path, 1, 2)
    spoil(tmp_path / "step-00000002")
    assert checkpoint_files.newest(tmp_path) == tmp_path / "step-00000001"
    assert checkpoint_files.list_damaged(tmp_path) == (
        [tmp_path / "step-00000002"] if spoil is not shutil.rmtree else []
    )
    saved(tmp_path, 2)
    assert checkpoint_files.newest(tmp_path) == tmp_path / "step-00000002", "written anew"
    assert checkpoint_files.list_damaged(tmp_path) == []


def test_what_latest_names_comes_first_and_without_it_the_highest(tmp_path):
    assert checkpoint_files.newest(tmp_path) is None
    saved(tmp_path, 9, 10, 3)
    assert checkpoint_files.newest(tmp_path) == tmp_path / "step-00000003"
    (tmp_path / "latest").unlink()
    assert checkpoint_files.newest(tmp_path) == tmp_path / "step-00000010"
    (tmp_path / "latest").write_text("")
    assert checkpoint_files.newest(tmp_path) == tmp_path / "step-00000010"


def test_a_valid_checkpoint_of_the_same_step_stays(tmp_path):
    saved(tmp_path, 4)
    before = (tmp_path / "step-00000004" / checkpoint_files.MODEL).stat().st_mtime_ns
    saved(tmp_path, 4)
    assert (tmp_path / "step-00000004" / checkpoint_files.MODEL).stat().st_mtime_ns == before


def test_weights_of_another_model_are_refused_with_names():
    module, _ = trained(steps=0)
    tensors = checkpoint.weights(module)
    with pytest.raises(
        UniclError, match=r"here: belongs to another model: 1 tensors missing \(kept\), 1 unknown \(new\)"
    ):
        checkpoint.load_weights(
            module, {n: v for n, v in tensors.items() if n != "kept"} | {"new": torch.ones(1)}, "here"
        )
    with pytest.raises(UniclError, match=r"first.bias has another shape: \(5,\) in the file, \(4,\) in the model"):
        checkpoint.load_weights(module, tensors | {"first.bias": torch.ones(5)}, "here")


@pytest.mark.parametrize("content", [None, b"", b"not tensors at all"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UniclError, match=r"x\.safetensors: cannot be read"):
        checkpoint.read_tensors(tmp_path / "x.safetensors")


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """Too full for its weights, or for what follows them."""
    root = tmp_path / "checkpoints"
    words = [sys.executable, "-c", FULL_DISK, str(root), "100", "20000"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    said = f"2 latest step-00000001 {root}/step-00000002: the checkpoint could not be written: "
    assert [line.startswith(said) for line in done.stdout.splitlines()] == [True, True], done.stdout
    assert checkpoint_files.newest(root) == root / "step-00000001"


def test_an_average_follows_the_weights_and_comes_back(tmp_path):
    module, optimizer = trained(steps=0)
    average = Average(module, 0.75)
    before = {name: value.detach().clone() for name, value in checkpoint.own_tensors(module).items()}
    more(module, optimizer, 1)
    average.update(1)
    now = checkpoint.own_tensors(module)
    assert torch.allclose(average.values["first.bias"], 0.75 * before["first.bias"] + 0.25 * now["first.bias"])
    assert torch.equal(average.values["norm.running_mean"], now["norm.running_mean"])
    assert average.values["norm.num_batches_tracked"] == 1
    folder = checkpoint.save(tmp_path, module, optimizer, {"step": 1}, 1, average.values)
    other = Average(trained(seed=4)[0], 0.75)
    other.load(checkpoint.read_tensors(folder / checkpoint_files.EMA))
    assert all(torch.equal(other.values[name], average.values[name]) for name in average.trained)
    assert json.loads((folder / checkpoint_files.TRAINER).read_text())["files"].keys() == {
        checkpoint_files.MODEL,
        checkpoint_files.OPTIM,
        checkpoint_files.EMA,
    }


def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        checkpoint.write_tensors(tmp_path / "w.safetensors", {"x": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644


# -- what lies beside checkpoints -------------------------------------------------------------------------------------


def beside(root):
    """A user's copies, links, archives and folders beside checkpoints."""
    (root / "step-00000002-good").mkdir()
    (root / "step-00000002-good" / checkpoint_files.TRAINER).write_text("{}")
    for name in ("step-00000002.tar.gz", "step-00000099", "step-0000000٣", "step-000000001", "best.txt"):
        (root / name).write_text("mine")
    (root / "step-00000097").symlink_to("missing")
    (root / "step-00000098").mkdir()
    (root / "step-00000098" / "notes.txt").write_text("mine")
    return {path.name for path in root.iterdir()}


def names(root):
    return sorted(path.name for path in root.iterdir() if path.name != "latest")


def test_strangers_beside_checkpoints_neither_count_nor_go_nor_end_a_save(tmp_path, capfd):
    theirs = beside(tmp_path)
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert set(names(tmp_path)) == {*theirs, "step-00000003", "step-00000004"}
    assert [folder.name for folder in checkpoint_files.list_folders(tmp_path)] == ["step-00000003", "step-00000004"]
    assert checkpoint_files.newest(tmp_path) == tmp_path / "step-00000004"
    assert checkpoint_files.list_damaged(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_a_checkpoint_that_was_moved_and_linked_back_is_used_and_never_deleted(tmp_path):
    root, disk = tmp_path / "checkpoints", tmp_path / "disk"
    saved(root, 1, 2, keep=2)
    disk.mkdir()
    for name in ("step-00000001", "step-00000002"):
        (root / name).rename(disk / name)
        (root / name).symlink_to(disk / name)
    assert checkpoint_files.newest(root) == root / "step-00000002"
    saved(root, 3, 4, 5, keep=2)
    assert names(root) == ["step-00000001", "step-00000002", "step-00000004", "step-00000005"]
    assert all(checkpoint_files.is_whole(disk / name) for name in ("step-00000001", "step-00000002"))


@pytest.mark.parametrize("kind", ["link", "file", "folder"])
def test_what_lies_where_a_checkpoint_must_go_is_moved_aside(tmp_path, kind):
    place, elsewhere = tmp_path / "step-00000001", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("mine")
    if kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "file":
        place.write_text("mine")
    else:
        elsewhere.rename(place)
    saved(tmp_path, 1)
    assert checkpoint_files.is_whole(place)
    (aside,) = tmp_path.glob("step-00000001.aside-*")
    assert (aside if kind == "file" else aside / "notes.txt").read_text() == "mine"


def test_a_checkpoint_with_a_users_file_inside_is_kept_and_named(tmp_path, capfd):
    saved(tmp_path, 1, keep=1)
    (tmp_path / "step-00000001" / "notes.txt").write_text("mine")
    saved(tmp_path, 2, 3, keep=1)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    told = f"warning: {tmp_path / 'step-00000001'}: not deleted: it holds files that unicl did not write"
    assert set(capfd.readouterr().err.splitlines()) == {told}


def test_a_deletion_that_fails_is_a_warning(tmp_path, capfd, monkeypatch):
    saved(tmp_path, 1)

    def refuse(path):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(checkpoint_files, "discard", refuse)
    saved(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert (
        capfd.readouterr().err == f"warning: {tmp_path / 'step-00000001'}: cannot be deleted: Operation not permitted\n"
    )


def test_steps_beyond_eight_digits_come_last(tmp_path):
    for step in (99_999_999, 100_000_000, 7):
        folder = checkpoint_files.folder_of(tmp_path, step)
        folder.mkdir()
        (folder / checkpoint_files.TRAINER).touch()
        assert checkpoint_files.step_of(folder) == step
    assert [checkpoint_files.step_of(each) for each in checkpoint_files.list_folders(tmp_path)] == [7, 10**8 - 1, 10**8]
