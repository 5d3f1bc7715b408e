"""The output directory of `prepare`: what it takes, and what it never removes there."""

import json
import shutil
from pathlib import Path

import pytest

from unicl_cli.cli import main
from unicl_cli.jobs.prepare.lock import remove_unfinished
from unicl_cli.storage.files import temporary_name

OLD = Path(__file__).parents[2] / "fixtures" / "before-rooms" / "old-corpus"
SOURCE = ("prepare", "--labels", "digits?limit=30", "--holdout", "0", "-q", "-o")
STRANGERS = ("notes.tmp", "data/kept/b.tmp", "parts/c.tmp", "rejects/d.tmp", "extra/e.tmp", f"x.{'0' * 32}.tmp")


def state(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.json", '{"my": "project plan"}'),
        ("plan.json", "[]"),
        ("plan.json", ""),
        ("thesis.tmp", "mine"),
        (".lock", "mine"),
        ("holdout.json", '{"mine": 1}'),
        ("rejects/mine.jsonl", "mine"),
        ("rejects/deeper/train.a-labels-00000-of-00001.jsonl", "mine"),
        ("manifest.json", "{}"),
        ("data/a", "mine"),
        (f".unicl-{'1' * 31}.tmp", "mine"),
    ],
)
def test_a_users_directory_is_refused_and_nothing_is_removed(tmp_path, capsys, name, text):
    for each in (*STRANGERS, name):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).write_text(text)
    for empty in ("empty", "data/empty", "parts/empty"):
        (tmp_path / empty).mkdir(parents=True)
    temporary_name(tmp_path).touch()
    before = state(tmp_path)
    assert main([*SOURCE, str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", ["thesis.tmp", ".lock", "holdout.json", "rejects/mine.jsonl", "plan.json"])
def test_one_foreign_file_alone_is_enough(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"mine": 1}')
    before = state(tmp_path)
    assert main([*SOURCE, str(tmp_path)]) == 2
    assert state(tmp_path) == before


def test_a_file_as_directory_is_refused(tmp_path, capsys):
    (tmp_path / "c").write_text("mine")
    assert main([*SOURCE, str(tmp_path / "c")]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {tmp_path / 'c'}: is a file, not a directory"
    assert (tmp_path / "c").read_text() == "mine"


def test_another_plan_for_a_corpus_removes_nothing(tmp_path):
    """Not even what an earlier command left: the checks have not all passed."""
    corpus = tmp_path / "c"
    assert main([*SOURCE, str(corpus)]) == 0
    temporary_name(corpus / "data" / "train").touch()
    before = state(corpus)
    assert main(["prepare", "--labels", "digits?limit=31", "-q", "-o", str(corpus)]) == 2
    assert state(corpus) == before


def test_a_corpus_loses_our_leftovers_and_no_file_of_the_user(tmp_path):
    corpus = tmp_path / "c"
    assert main([*SOURCE, str(corpus)]) == 0
    whole = state(corpus)
    for name in STRANGERS:
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text("mine")
    (corpus / "data" / "empty").mkdir()
    before = state(corpus)
    for folder in (corpus, corpus / "data" / "train", corpus / "parts"):
        temporary_name(folder).write_text("ours")
    (tmp_path / "elsewhere").mkdir()
    (corpus / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    temporary_name(tmp_path / "elsewhere").touch()
    assert main([*SOURCE, str(corpus)]) == 0
    assert {name: data for name, data in state(corpus).items() if not name.startswith("data/linked")} == before
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1, "a link leads to the user's own place"
    (corpus / "manifest.json").unlink()
    (corpus / "data" / "linked").unlink()
    assert main([*SOURCE, str(corpus)]) == 0
    assert state(corpus) == before
    assert before.items() >= whole.items()


def test_a_prepare_that_found_no_usable_row_may_be_repeated_with_other_options(tmp_path, capsys):
    (tmp_path / "list.tsv").write_text("path\tcaption\na.png\ta cat\n")
    (tmp_path / "a.png").write_text("no image")
    out = tmp_path / "c"
    for _ in range(2):
        assert main(["prepare", "--captions", str(tmp_path / "list.tsv"), "-q", "-o", str(out)]) == 2
        assert "no usable rows (rejected: not_image 1)" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["rejects"]
    assert main([*SOURCE, str(out)]) == 0


def test_a_start_that_was_killed_before_its_plan_is_taken_up(tmp_path):
    out = tmp_path / "c"
    out.mkdir()
    (out / ".lock").write_text("unicl: pid 1 on host\n")
    (out / "holdout.json").write_text(json.dumps({"basis": {}, "moved": {}, "followed": {}}))
    temporary_name(out).touch()
    assert main([*SOURCE, str(out)]) == 0
    assert not list(out.glob(".unicl-*"))
    assert not (out / ".lock").exists()


def test_a_corpus_of_an_earlier_version_is_a_corpus(tmp_path, capsys):
    shutil.copytree(OLD, tmp_path / "c")
    before = state(tmp_path / "c")
    assert main([*SOURCE, str(tmp_path / "c")]) == 2
    assert "was started with another plan" in capsys.readouterr().err
    assert state(tmp_path / "c") == before
    remove_unfinished(tmp_path / "c")
    assert state(tmp_path / "c") == before
