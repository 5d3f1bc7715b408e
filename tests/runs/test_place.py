"""The directory of a run: which one a training takes, which model is the default, which files no output replaces."""

import json
import os
import shutil
from pathlib import Path

import pytest

from unicl_cli.cli import main
from unicl_cli.errors import UniclError
from unicl_cli.runs import folder as run_folder
from unicl_cli.runs.folder import finished_at, is_marked, last_run
from unicl_cli.runs.owned import find_owner
from unicl_cli.runs.place import check_run_dir
from unicl_cli.storage.files import temporary_name

OLD = Path(__file__).parents[1] / "fixtures" / "before-rooms"
HOLDER = "unicl: pid 12 on host\n"


def refused(run: Path) -> str:
    """Return the message with which a directory is refused; nothing may change in it."""
    before = sorted(str(path) for path in run.rglob("*"))
    with pytest.raises(UniclError) as error:
        check_run_dir(run)
    assert sorted(str(path) for path in run.rglob("*")) == before
    assert error.value.exit_code == 2
    assert error.value.hint == "choose a new or empty directory with --run-dir"
    return error.value.message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, '{"mine": 1}') for name in ("status.json", "meta.json", "env.json", "eval.jsonl", "notes.tmp")),
        *((name, "[]") for name in ("status.json", "meta.json", "env.json")),
        *((name, "[" * 100_000) for name in ("status.json", "meta.json", "env.json")),
        ("recipe.yaml", "steps: 3"),
        ("resolved.yaml", "steps: 3"),
        ("run.lock", "mine"),
        ("run.lock", "pid 12 on host"),
        ("status.json", '{"schema": "unicl/runs/1", "runs": []}'),  # what `unicl runs ls --json` prints
        ("env.json", '{"versions": {}}'),
        ("checkpoints/latest", "step-00000001"),
        ("checkpoints/step-00000001/trainer.json", '{"step": 1}'),
        ("checkpoints/step-00000001/model.safetensors", ""),
        ("logs/today.log", "mine"),
        ("logs/unicl_abcdefgh", "a file, not a folder"),
        ("stage-1/status.json", "{}"),
        (".unicl-12.tmp", ""),
    ],
)
def test_a_directory_is_no_run_because_of_names(tmp_path, name, text):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    assert f"contains other files ({name.split('/')[0]})" in refused(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_a_corpus_finished_or_not_is_never_taken_for_a_run(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "run.lock").write_text(HOLDER)
    assert refused(tmp_path) == f"{tmp_path}: is a corpus, not a run directory"
    with pytest.raises(UniclError, match="is a corpus"):
        check_run_dir(OLD / "old-corpus")


def test_a_run_is_never_taken_for_a_corpus(capsys):
    before = sorted(OLD.rglob("*"))
    assert main(["prepare", "--labels", "digits?limit=9", "-o", str(OLD / "old-run")]) == 2
    assert "contains other files (checkpoints and" in capsys.readouterr().err
    assert sorted(OLD.rglob("*")) == before


def test_a_new_or_empty_directory_is_taken_with_what_a_killed_start_leaves_there(tmp_path):
    check_run_dir(tmp_path / "new")
    check_run_dir(tmp_path)
    temporary_name(tmp_path).mkdir()
    (tmp_path / "run.lock").touch()
    (tmp_path / "logs" / "unicl_a_b1c2d3" / "attempt_0").mkdir(parents=True)
    check_run_dir(tmp_path)


def test_a_run_stays_a_run_at_every_moment_of_its_start(tmp_path):
    """Its files come one by one, in this order, and a kill can come between any two."""
    order = ("recipe.yaml", "overrides.txt", "env.json", "classes.json", "tokenizer.json", "resolved.yaml")
    (tmp_path / "run.lock").write_text(HOLDER)
    for name in (*order, "status.json", "metrics.jsonl"):
        shutil.copyfile(OLD / "old-run" / name, tmp_path / name)
        check_run_dir(tmp_path)


@pytest.mark.parametrize("kept", ["env.json", "status.json", "checkpoints", None])
def test_a_run_of_an_earlier_version_without_its_lock_is_a_run(tmp_path, kept):
    run = tmp_path / "run"
    shutil.copytree(OLD / "old-run", run)
    for name in ("env.json", "status.json", "checkpoints"):
        if kept not in (None, name):
            shutil.rmtree(run / name, ignore_errors=True)
            (run / name).unlink(missing_ok=True)
    check_run_dir(run)
    moved = tmp_path / "moved"
    run.rename(moved)
    (tmp_path / "link").symlink_to(moved)
    check_run_dir(tmp_path / "link")


def test_a_model_that_mix_wrote_is_marked(tmp_path):
    (tmp_path / "meta.json").write_text('{"schema": "unicl/model/1", "mixed": {}}')
    assert is_marked(tmp_path)


# -- the default model ------------------------------------------------------------------------------------------------


def finished(name: str, meta: dict, status: dict | None, clock: float) -> None:
    run = run_folder.RUNS / name
    run.mkdir(parents=True)
    (run / "resolved.yaml").touch()
    (run / "meta.json").write_text(json.dumps(meta))
    if status is not None:
        (run / "status.json").write_text(json.dumps(status))
    os.utime(run / "meta.json", (clock, clock))


def test_the_default_model_finished_last_whatever_the_clocks_of_its_files_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert last_run() is None
    finished("copied", {"finished": 1000.0}, None, clock=9e9)
    finished("touched", {}, {"state": "done", "updated": 2000.0}, clock=8e9)
    finished("newest", {"finished": 3000.0}, {"state": "done", "updated": 1.0}, clock=5.0)
    assert last_run() == "runs/newest"
    finished("foreign", {"schema": "mine"}, None, clock=9e9)
    (run_folder.RUNS / "foreign" / "resolved.yaml").unlink()
    assert last_run() == "runs/newest", "another program's meta.json is not a run"


@pytest.mark.parametrize("told", [None, "yesterday", float("nan"), -1, 10**400, [], True])
def test_a_run_that_says_no_time_is_as_old_as_its_file(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    finished("a", {"finished": told}, {"state": "running", "updated": 7.0}, clock=50.0)
    assert finished_at(run_folder.RUNS / "a") == 50.0


# -- files that no output replaces ------------------------------------------------------------------------------------

PARTS = (
    *("old-corpus/manifest.json", "old-corpus/plan.json", "old-corpus/duplicates.json"),
    *("old-corpus/data/train/photos-labels-00000-of-00001.parquet", "old-corpus/data/test/new.parquet"),
    *("old-corpus/parts/test.photos-labels-00000-of-00001.json", "old-corpus/rejects/a.jsonl"),
    *("old-run/recipe.yaml", "old-run/status.json", "old-run/meta.json", "old-run/model.safetensors"),
    *("old-run/eval.jsonl", "old-run/checkpoints/latest", "old-run/checkpoints/best"),
    *("old-run/checkpoints/step-00000025/model.safetensors", "old-run/checkpoints/step-00000025/trainer.json"),
)
OWN = ("old-corpus/page.html", "old-run/eval.json", "old-run/data/a.json", "manifest.json", "meta.json", "x/plan.json")


@pytest.mark.parametrize("name", PARTS)
def test_what_makes_up_a_corpus_or_a_run_is_no_place_for_an_output(tmp_path, capsys, name):
    shutil.copytree(OLD, tmp_path / "copy")
    file = tmp_path / "copy" / name
    (tmp_path / "link").symlink_to(file)
    before = file.read_bytes() if file.exists() else None
    for out in (file, tmp_path / "link"):
        assert find_owner(out) is not None
        assert main(["inspect", str(OLD / "old-corpus"), "-o", str(out), "-q"]) == 2
        said = capsys.readouterr().err
        assert f"-o {out}: is part of the " in said
        assert len(said.splitlines()) == 2
    assert (file.read_bytes() if file.exists() else None) == before


@pytest.mark.parametrize("name", OWN)
def test_other_files_in_or_beside_them_are_the_users(tmp_path, name):
    shutil.copytree(OLD, tmp_path / "copy")
    assert find_owner(tmp_path / "copy" / name) is None
