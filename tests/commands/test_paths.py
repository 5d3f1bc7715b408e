"""Options whose value is a path or text: they keep it as written, whatever YAML would make of it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from launching import TINY

from unicl_cli.binding import read_options
from unicl_cli.cli import main
from unicl_cli.commands.train import collect_changes
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.runs.folder import OVERRIDES
from unicl_cli.runs.place import run_path

WORDLIKE = ["exp #2", "a: b", "5", "true", "null", "~", "'q'", '"q"', " a ", "a\nb"]
ODD = [*WORDLIKE, "&a x", "*a", "!!str x", "[a]", "{a: 1}"]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


def loaded(**options):
    return load("quickstart", collect_changes("quickstart", options.pop("data", ()), {}, (), options))


@pytest.mark.parametrize("path", ODD)
def test_a_run_directory_a_model_and_a_corpus_are_called_what_they_are_called(path):
    recipe = loaded(**{"run_dir": path, "model.init": path, "data": (path,)})
    assert recipe.model.init == path
    assert run_path(recipe) == Path(path)
    assert [item.corpus for item in recipe.data.train] == [path]


@given(WORDS, WORDS)
def test_any_text_is_kept_and_what_the_run_notes_of_it_gives_it_back(one, other):
    changes = collect_changes("quickstart", (), {}, (), {"run_dir": one, "model.init": other})
    for written in (changes, [str(change) for change in changes]):
        recipe = load("quickstart", written)
        assert (recipe.run_dir, recipe.model.init) == (one, other)


@pytest.mark.parametrize("path", ODD)
def test_an_option_of_a_source_keeps_its_text_too(path):
    assert read_options("datasets", "folder", {"classes": path}) in ({"classes": path}, {"classes": None})
    if path not in ("null", "~"):
        assert read_options("datasets", "folder", {"classes": path}) == {"classes": path}


def test_a_training_writes_where_it_was_told_and_starts_from_what_it_was_told(digits, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, "my #1: corpus")
    Path("r.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(TINY | {"steps": 1}))))
    assert main(["train", "r.yaml", "--data", "my #1: corpus", "--run-dir", "first #1", "-q"]) == 0
    assert main(["train", "r.yaml", "--data", "my #1: corpus", "--init", "first #1", "--run-dir", "5", "-q"]) == 0
    out, err = capfd.readouterr()
    assert out == "first #1\n5\n"
    assert "5: starts from all of first #1, with its tokenizer" in err
    assert (Path("5") / OVERRIDES).read_text().splitlines()[1:] == ["model.init='first #1'", "run_dir='5'"]
    assert main(["eval", "5", "--data", "my #1: corpus", "--json", "-q"]) == 0


def test_a_name_that_is_no_text_is_one_line(capfd):
    assert main(["train", "quickstart", "--run-dir", "a\udcff", "--dry-run"]) == 2
    assert "error: --run-dir 'a\\udcff': is not UTF-8" in capfd.readouterr().err
    with pytest.raises(UniclError, match="not KEY=VALUE"):
        load("quickstart", ["run_dir"])


@pytest.mark.parametrize(
    "line",
    ["mix a b -o s3://b/c", "export-corpus c -o memory://c", "inspect c -o s3://b/i.json", "export r -o s3://b/m"],
)
def test_an_output_on_another_file_system_is_refused(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert f"output '{line.split()[-1]}': is on another file system" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
