"""The help of every first-party command in 80 columns, as it is read."""

import os
import subprocess
import sys
from pathlib import Path

from unicl_cli.cli import BUILTIN

CODE = """
import sys
import typer
from unicl_cli.cli import BUILTIN, main
def read(words):
    print(f"$ unicl {' '.join(words)}".rstrip(), flush=True)
    main([*words, "--help"])
read([])
for name in BUILTIN:
    read([name])
    app = __import__(f"unicl_cli.commands.{name}", fromlist=["app"]).app
    group = typer.main.get_command(app)
    for inner in getattr(group, "commands", ()):
        read([name, inner])
"""


def test_the_help_of_every_command_is_as_it_was_read(golden, tmp_path: Path):
    env = os.environ | {"TERMINAL_WIDTH": "80", "COLUMNS": "80", "UNICL_NO_PLUGINS": "1", "TERM": "dumb"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert all(f"$ unicl {name}" in lines for name in BUILTIN)
    golden("help.txt", "\n".join(lines) + "\n")
