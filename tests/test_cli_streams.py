"""The command line where it is pressed: wrong words, pipes that close, full disks, odd terminals and encodings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from unicl_cli import registry
from unicl_cli.cli import BUILTIN, main

Capture = pytest.CaptureFixture[str]
STOPPED = """
import typer
from unicl_cli.errors import Stopped
app = typer.Typer(add_completion=False)
@app.command()
def halt() -> None:
    raise Stopped("stopped after step 3 of 9", "run the same command again to continue")
PARTS = {"commands": {"halt": app}}
"""
MANY = """
import typer
app = typer.Typer(add_completion=False)
@app.command()
def many(count: int = 100000, word: str = "line", quiet: bool = False) -> int:
    for number in range(count):
        typer.echo(f"{word} {number}")
    return 7
PARTS = {"commands": {"many": app}}
"""


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "many.py"
    path.write_text(MANY, encoding="utf-8")
    monkeypatch.setenv("UNICL_PLUGINS", str(path))
    registry.forget()
    yield
    monkeypatch.undo()
    registry.forget()


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f"set -o pipefail; {line}".replace("unicl ", f"{sys.executable} -m unicl_cli ")]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=300, check=False)


@pytest.mark.parametrize(
    ("line", "first", "second"),
    [
        ("trian", "unicl: no such command 'trian'; did you mean 'train'?", "usage: unicl [OPTIONS] COMMAND [ARGS]..."),
        ("recipes shw", "unicl recipes: no such command 'shw'; did you mean 'show'?", "usage: unicl recipes "),
        ("train", "unicl train: missing argument 'RECIPE'", "usage: unicl train [OPTIONS] RECIPE [KEY=VALUE]..."),
        (
            "train x --dry-rnu",
            "unicl train: no such option: --dry-rnu; did you mean '--dry-run'?",
            "usage: unicl train",
        ),
        ("train x --devices", "option '--devices' requires an argument", "run unicl COMMAND --help to see its options"),
        ("recipes schema a", "unicl recipes schema: got unexpected extra arguments (a)", "usage: unicl recipes schema"),
        ("prepare --limit x", "unicl prepare: '--limit': should be a valid integer", "usage: unicl prepare"),
        ("--plugni x doctor", "unicl: no such option: --plugni; did you mean '--plugin'?", "usage: unicl"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_a_hint(capsys: Capture, line: str, first: str, second: str):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert out == ""
    assert said[0] == f"error: {first}"
    assert said[1].startswith(f"  hint: {second}")
    assert len(said) == 2


@pytest.mark.parametrize("words", [["recipes", "ls"], ["plugins", "ls", "losses"], ["runs", "ls", "."]])
@pytest.mark.parametrize("option", ["--quiet", "-q", "--verbose", "-v", "--debug"])
def test_what_counts_everywhere_may_stand_behind_the_command(words, option, capsys, monkeypatch):
    monkeypatch.setenv("UNICL_DEBUG", "")  # put back what --debug sets
    assert main([*words, option]) == 0
    assert main([option, *words]) == 0


def test_debug_behind_the_command_shows_the_traceback(monkeypatch, capsys: Capture):
    monkeypatch.setenv("UNICL_DEBUG", "")
    assert main(["recipes", "show", "quickstrat", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_command_keeps_its_own_option_of_that_name_and_what_it_returns_is_not_a_status(many, capsys: Capture):
    assert main(["many", "--count", "1", "--quiet"]) == 0
    assert capsys.readouterr().out == "line 0\n"


def test_a_reader_that_has_had_enough_is_not_an_error(many):
    done = shell("unicl many | head -n 2")
    assert (done.returncode, done.stdout, done.stderr) == (141, "line 0\nline 1\n", "")
    assert shell("unicl many --count 3 | true").stderr == ""


@pytest.mark.parametrize(
    "line",
    [
        "recipes validate NAME",
        "recipes validate quickstart data.train.0.corpus=NAME",
        "recipes validate child.yaml",
        "inspect NAME",
        "prepare --labels NAME -o out",
        "prepare --labels digits?limit=5 -o NAME",
        "zeroshot x.png y.png NAME",
        "zeroshot NAME",
        "zeroshot x.png --model NAME",
        "runs ls NAME",
    ],
)
def test_a_name_that_is_too_long_is_one_line(line: str, tmp_path: Path, monkeypatch, capsys: Capture):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch() if "--model" in line else None
    (tmp_path / "child.yaml").write_text(f"extends: {'a' * 5000}\n")
    assert main(line.replace("NAME", "a" * 5000).split()) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert hint.startswith("  hint: ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_threshold_is_a_finite_number(value: str, capsys: Capture):
    assert main(["zeroshot", "x.png", f"--threshold={value}"]) == 2
    assert capsys.readouterr().err.startswith("error: --threshold: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_line(many):
    done = shell("unicl many --count 20000 > /dev/full")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: standard output: No space left on device"


def test_a_name_that_the_encoding_lacks_does_not_crash(many):
    for env in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "latin-1", "TERM": "dumb"}):
        line = "unicl many --count 1 --word 猫"
        if env.get("PYTHONIOENCODING") == "ascii":
            line += " && unicl plugins ls && unicl recipes show quickstart loss=clip"
        done = shell(line, **env)
        assert (done.returncode, done.stderr) == (0, ""), env


@pytest.mark.parametrize("columns", ["40", "80"])
def test_help_fits_a_narrow_terminal_and_a_dumb_one_has_no_colour(columns: str):
    done = shell("unicl --help", COLUMNS=columns, TERMINAL_WIDTH=columns, TERM="dumb")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= int(columns)
    assert "\x1b" not in done.stdout
    assert all(name in done.stdout for name in BUILTIN)


def test_json_is_one_document_on_stdout_whatever_stderr_says(tmp_path: Path, monkeypatch, capsys: Capture):
    monkeypatch.chdir(tmp_path)
    for words in (["recipes", "ls"], ["recipes", "show", "quickstart"], ["recipes", "validate", "quickstart"]):
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["schema"] == "unicl/recipes/1"


@pytest.mark.parametrize(
    ("line", "status"),
    [("recipes ls >&-", 0), ("recipes ls 2>&-", 0), ("recipes show nope 2>&-", 2), ("recipes ls <&- >&- 2>&-", 0)],
)
def test_closed_streams_are_not_a_fault(line: str, status: int):
    done = shell(f"unicl {line}")
    assert done.returncode == status
    assert "Traceback" not in done.stderr


HOSTILE = "ca\x1b]0;pwn\x07t\x9b31m\u202e"


@pytest.mark.parametrize("line", ["inspect NAME", "train NAME.yaml", "eval NAME", "recipes show quickstart NAME=3"])
def test_a_name_commands_no_terminal_in_an_error(capsys: Capture, line: str):
    assert main([word.replace("NAME", HOSTILE) for word in line.split()]) == 2
    said = capsys.readouterr()
    assert r"ca\x1b]0;pwn\x07t\x9b31m\u202e" in said.err
    assert not said.out
    assert not set("\x1b\x07\x9b\u202e") & set(said.err)


def test_a_line_break_in_a_name_makes_no_second_error_line(capsys: Capture):
    assert main(["inspect", "a\nerror: b"]) == 2
    assert capsys.readouterr().err.startswith(r"error: a\nerror: b: no such file")


def test_class_names_command_no_terminal_in_tables(tmp_path: Path, capsys: Capture):
    folder = tmp_path / "pets" / HOSTILE
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(folder / f"{number}.png")
    assert main(["prepare", "--labels", str(tmp_path / "pets"), "-o", str(tmp_path / "c"), "-q"]) == 0
    assert main(["inspect", str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out
    assert r"ca\x1b]0;pwn" in said
    assert not set("\x1b\x07\x9b\u202e") & set(said)


def test_a_stop_that_was_asked_for_is_not_an_error(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "halt.py").write_text(STOPPED)
    monkeypatch.setenv("UNICL_PLUGINS", str(tmp_path / "halt.py"))
    registry.forget()
    try:
        assert main(["halt"]) == 75
    finally:
        monkeypatch.undo()
        registry.forget()
    assert capsys.readouterr() == ("", "stopped after step 3 of 9\n  run the same command again to continue\n")
