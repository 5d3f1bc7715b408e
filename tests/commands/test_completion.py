"""Completion as bash, zsh and fish ask for it: commands, options, values; without torch."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unicl_cli.cli import main
from unicl_cli.commands import completion
from unicl_cli.recipe.layers import builtin_names

Shell = Callable[[str, str], str]
HEAVY = {"torch", "numpy", "timm", "datasets", "accelerate", "transformers", "open_clip", "sklearn"}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """``shell("bash", line)``: what bash is told; the line is split by blanks, and its last word is half typed."""

    def ask(how: str, line: str) -> str:
        asked = {
            "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
            "zsh": {"_TYPER_COMPLETE_ARGS": line},
            "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        }[how]
        for name, value in {"_UNICL_COMPLETE": f"complete_{how}", **asked}.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        assert main([]) == 0
        return capsys.readouterr().out

    return ask


def test_bash_gets_one_word_a_line(shell: Shell):
    assert shell("bash", "unicl tra").split() == ["train"]
    assert shell("bash", "unicl train digits-cap").split() == ["digits-caption-only"]
    assert shell("bash", "unicl train quickstart --dry").split() == ["--dry-run"]


def test_zsh_gets_words_with_their_help_and_fish_too(shell: Shell):
    assert '"train":"Train a recipe' in shell("zsh", "unicl tra")
    assert '"loss=clip"' in shell("zsh", "unicl train quickstart loss=cl")
    assert shell("fish", "unicl runs l").startswith("ls\tList runs")
    assert shell("fish", "unicl train quickstart precision=b").split() == ["precision=bf16"]


def test_bash_cuts_a_word_at_its_equals_sign(shell: Shell):
    assert shell("bash", "unicl train quickstart loss = cl").split() == ["clip"]
    assert {"ce", "clip", "unicl"} <= set(shell("bash", "unicl train quickstart loss =").split())


def test_completion_loads_no_torch():
    code = "import atexit, sys; atexit.register(lambda: sys.stderr.write('LOADED ' + ' '.join(sys.modules)))\n"
    code += "from unicl_cli.cli import main; sys.exit(main())"
    asked = {"_UNICL_COMPLETE": "complete_bash", "COMP_WORDS": "unicl train quickstart opti", "COMP_CWORD": "3"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=300, check=False)
    assert "optim.lr=" in done.stdout
    assert not HEAVY & set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(name: str):
    env = os.environ | {"_UNICL_COMPLETE": f"source_{name}"}
    command = [sys.executable, "-m", "unicl_cli"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"_UNICL_COMPLETE=complete_{name}" in done.stdout


def test_the_script_is_installed_where_bash_reads_it(tmp_path: Path):
    env = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for option in ("--show-completion", "--install-completion"):
        command = [sys.executable, "-m", "unicl_cli", option, "bash"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    assert "_UNICL_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "unicl.sh").read_text()


def test_recipes_are_names_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/a.yaml").write_text("")
    Path("mine/b.txt").write_text("")
    Path("mix.yml").write_text("")
    assert completion.complete_recipes("mi") == ["mine/", "mix.yml"]
    assert completion.complete_recipes("mine/") == ["mine/a.yaml"]
    assert set(builtin_names()) <= set(completion.complete_recipes(""))
    assert completion.complete_recipes("nowhere/x") == []


def test_every_key_of_a_recipe_is_offered_with_what_it_can_be():
    known = completion.key_choices()
    assert known["schedule.name"] == ["cosine", "constant"]
    assert known["deterministic"] == ["true", "false"]
    assert {"unicl", "clip"} <= set(known["loss"])
    assert "timm" in known["model.image"]
    assert {"optim.lr", "data.image_size", "log.trackers", "checkpoint.best.metric"} <= set(known)
    assert completion.complete_overrides("schedule.name=c") == ["schedule.name=constant", "schedule.name=cosine"]


def test_runs_sources_and_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/status.json").write_text("{}")
    assert completion.complete_runs("runs/o") == ["runs/one"]
    assert "digits" in completion.complete_sources("dig")
    assert completion.complete_kinds("l") == ["losses"]


def test_bash_leaves_the_cursor_behind_the_equals_sign(tmp_path: Path):
    script = tmp_path / "unicl.sh"
    env = os.environ | {"_UNICL_COMPLETE": "source_bash"}
    made = subprocess.run([sys.executable, "-m", "unicl_cli"], env=env, capture_output=True, text=True, check=True)
    script.write_text(made.stdout)
    unicl = tmp_path / "unicl"
    unicl.write_text(f"#!/bin/sh\nexec {sys.executable} -m unicl_cli\n")
    unicl.chmod(0o755)
    lines = """
        source $1; compopt() { printf '%s ' "$@"; }
        for word in data.image_si data.image_size=; do
            COMP_WORDS=(unicl train quickstart $word); COMP_CWORD=3
            _unicl_completion $2; echo "${COMPREPLY[@]}"
        done
        COMP_WORDS=(unicl tra); COMP_CWORD=1; _unicl_completion $2; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", lines, "bash", script, unicl], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "-o nospace data.image_size="
    assert done.stdout.splitlines()[-1] == "train"


def test_zsh_adds_keys_without_a_suffix():
    env = os.environ | {"_UNICL_COMPLETE": "source_zsh"}
    made = subprocess.run([sys.executable, "-m", "unicl_cli"], env=env, capture_output=True, text=True, check=True)
    assert "compadd -S ''" in made.stdout
    assert 'keys=( ${keys%%\\"*} )' in made.stdout  # one percent sign was for Python's own formatting


def test_names_of_parts_models_and_choices_are_offered(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/status.json").write_text("{}")
    assert shell("bash", "unicl plugins show losses mult").split() == ["multitask"]
    assert shell("bash", "unicl zeroshot a.png --model runs/").split() == ["runs/one"]
    assert shell("bash", "unicl prepare --text ").split() == ["clean", "raw"]
    assert shell("bash", "unicl bench step --vs o").split() == ["open_clip"]
