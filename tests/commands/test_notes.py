"""Notes and warnings on stderr: one line each, but broken between words on a terminal."""

import logging
import sys

import pytest

from unicl_cli.commands.output import print_note, print_warning
from unicl_cli.jobs.prepare.shards.progress import note


@pytest.mark.parametrize("tell", [note, print_note, print_warning])
def test_a_long_note_is_broken_between_words_on_a_terminal_only(tell, capsys, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "unicl_cli")  # not quiet
    path = "a/path/" + "of-a-name/" * 9
    said = f"{path}: {'several words and more of them ' * 6}".strip()
    tell(said)
    assert capsys.readouterr().err.removeprefix("warning: ") == f"{said}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    tell(said)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert " ".join(line.strip() for line in lines).removeprefix("warning: ") == said
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert all(line.startswith("  ") for line in lines[1:] if path not in line)
