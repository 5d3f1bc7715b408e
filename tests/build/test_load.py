"""The weights of a run that is still trained: the checkpoint that was chosen may be gone before it is read."""

import json
import shutil
from pathlib import Path

import pytest

from unicl_cli.build import load
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.errors import UniclError

OLD = Path(__file__).parents[1] / "fixtures" / "before-rooms" / "old-run"


@pytest.fixture
def run(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


def go_on(monkeypatch, run, *, saves: int) -> list[str]:
    """Let each of the first reads find that its checkpoint has made way for a newer one, as with `keep: 1`."""
    read, asked = checkpoint.read_tensors, []

    def reading(path):
        asked.append(path.parent.name)
        if len(asked) <= saves:
            newer = path.parents[1] / f"step-{25 + len(asked):08d}"
            path.parent.rename(newer)
            facts = json.loads((newer / "trainer.json").read_text())
            (newer / "trainer.json").write_text(json.dumps(facts | {"step": 25 + len(asked)}))
            (newer.parent / "latest").write_text(newer.name)
        return read(path)

    monkeypatch.setattr(checkpoint, "read_tensors", reading)
    return asked


@pytest.mark.parametrize("raw", [False, True])
def test_a_checkpoint_that_is_pruned_meanwhile_is_followed_by_the_newest(monkeypatch, run, raw):
    asked = go_on(monkeypatch, run, saves=2)
    path, tensors = load.read_run_weights(str(run), raw_weights=raw)
    assert asked == ["step-00000025", "step-00000026", "step-00000027"]
    assert path.name == ("model.safetensors" if raw else "ema.safetensors"), "also after the first was gone"
    assert tensors


def test_a_checkpoint_that_was_named_itself_is_one_line_once_it_is_gone(monkeypatch, run):
    go_on(monkeypatch, run, saves=1)
    with pytest.raises(UniclError, match="no such run or checkpoint directory"):
        load.read_run_weights(str(run / "checkpoints" / "step-00000025"), raw_weights=False)


def test_a_damaged_checkpoint_that_is_still_there_is_not_read_for_ever(monkeypatch, run):
    monkeypatch.setattr(checkpoint_files, "is_whole", lambda folder: True)
    (run / "checkpoints" / "step-00000025" / "ema.safetensors").write_text("damaged")
    with pytest.raises(UniclError, match=r"ema\.safetensors: cannot be read"):
        load.read_run_weights(str(run), raw_weights=False)
