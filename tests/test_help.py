"""The `--help` of every first-party command in 80 columns: golden texts, examples at the end, no `<bool>`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unicl_cli.cli import BUILTIN, FEW_OPTIONS, Stub

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "help"
CODE = """
import sys
from unicl_cli.cli import main
for line in sys.stdin.read().splitlines():
    print(f"$ unicl {line}", flush=True)
    main([*line.split(), "--help"])
"""


def command_lines() -> list[str]:
    """The empty line, each command, and each command of a group: `recipes ls`."""
    found = [""]
    for name in BUILTIN:
        inner = getattr(Stub(name, callback=None).load(), "commands", {})
        found += [name, *(f"{name} {each}" for each in inner)]
    return found


LINES = command_lines()


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Command line -> its help, as a fresh process prints it; one process prints all."""
    env = os.environ | {"TERMINAL_WIDTH": "80", "COLUMNS": "80", "UNICL_NO_PLUGINS": "1", "TERM": "dumb"}
    command = [sys.executable, "-c", CODE]
    folder, given = tmp_path_factory.mktemp("help"), "\n".join(["--quiet", *LINES[1:]])
    done = subprocess.run(command, env=env, cwd=folder, input=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("$ unicl ")[1:]
    texts = ["\n".join(line.rstrip() for line in part.splitlines()[1:]).strip("\n") + "\n" for part in parts]
    return dict(zip(LINES, texts, strict=True))


def file_of(line: str) -> str:
    return f"{line.replace(' ', '-') or 'unicl'}.txt"


@pytest.mark.parametrize("line", LINES)
def test_the_help_of_a_command_is_as_it_was_read(golden, helps: dict[str, str], line: str):
    golden(f"help/{file_of(line)}", helps[line], words=True)


def test_no_golden_help_is_left_of_a_command_that_is_gone(request: pytest.FixtureRequest):
    known = {file_of(line) for line in LINES}
    if request.config.getoption("--update-golden"):
        for file in GOLDEN.glob("*.txt"):
            if file.name not in known:
                file.unlink()
    assert {file.name for file in GOLDEN.iterdir()} == known


@pytest.mark.parametrize("line", LINES)
def test_help_fits_80_columns_and_ends_with_examples(helps: dict[str, str], line: str):
    text = helps[line]
    assert max(map(len, text.splitlines())) <= 80
    assert "<bool>" not in text
    head, _, end = text.rpartition("\n Examples:\n")
    assert head
    examples = end.splitlines()
    assert 1 <= len(examples) <= 3
    assert all(example.startswith(f"   unicl {line}".rstrip()) for example in examples)


@pytest.mark.parametrize("line", LINES)
def test_options_stand_in_panels_where_there_are_many(helps: dict[str, str], line: str):
    panels = [panel.split("\n╰")[0].splitlines() for panel in helps[line].split("╭─ ")[1:]]
    options = {lines[0].split(" ─")[0]: sum(row.startswith("│ -") for row in lines) for lines in panels}
    many = sum(options.values()) > FEW_OPTIONS
    assert (sum(count > 0 for count in options.values()) > 1) == many
    assert max(options.values()) <= FEW_OPTIONS


@pytest.mark.parametrize("name", BUILTIN)
def test_every_command_and_option_has_help_and_stands_in_the_docs(name: str):
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    command = Stub(name, callback=None).load()
    inner = getattr(command, "commands", {})
    for path, each in {name: command, **{f"{name} {key}": value for key, value in inner.items()}}.items():
        assert each.help, path
        assert f"# `unicl {path}" in page
        for param in each.params:
            assert getattr(param, "hidden", False) or param.help, f"{path}: {param.name}"
