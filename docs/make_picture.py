"""Draws docs/terminal.svg: what the commands of the quickstart print, run anew in `quickstart/`."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent
UNICL = str(Path(sys.executable).with_name("unicl"))
WIDTH = 100
LINES = (
    'prepare --labels "digits?classes=0-6&limit=600" --captions "digits?limit=300" -o quickstart/corpus',
    "train quickstart run_dir=quickstart/runs/picture",
    "eval quickstart/runs/picture",
    "zeroshot quickstart/a-seven.png --model quickstart/runs/picture --classes two,five,seven,nine --top-k 3",
)
SHOWN = 14
"""Lines of a command's output that fit into a picture."""


def main() -> None:
    """Needs `make quickstart` once, for its picture of a seven."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    for line in LINES:
        console.print(Text.assemble(("$ ", "bold green"), (f"unicl {line}", "bold")), soft_wrap=True)
        done = subprocess.run(
            [UNICL, *shlex.split(line)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        output = done.stdout.rstrip().splitlines()
        kept = output if len(output) <= SHOWN else [*output[: SHOWN - 1], "…"]
        console.print(Text.from_ansi("\n".join(kept)), soft_wrap=True)
        console.print()
    svg = console.export_svg(title="unicl")
    (DOCS / "terminal.svg").write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
