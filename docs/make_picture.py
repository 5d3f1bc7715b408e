"""Drawing of docs/terminal.svg, the terminal output of the quickstart's commands."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent
UNICL = str(Path(sys.executable).with_name("unicl"))
WIDTH = 112
LINES = (
    'prepare --labels "digits?classes=0-6&limit=600" --captions "digits?limit=300" -o quickstart/corpus',
    "train quickstart",
    "eval",
    "zeroshot seven.png --classes two,five,seven,nine --top-k 3",
)
SHOWN = 8
"""Lines of each command's output that are shown."""


def main() -> None:
    """Run the commands and draw their output; the image of a seven comes from an earlier `make quickstart`."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    with TemporaryDirectory() as here:
        shutil.copy(DOCS.parent / "quickstart" / "a-seven.png", Path(here) / "seven.png")
        for line in LINES:
            console.print(Text.assemble(("$ ", "bold green"), (f"unicl {line}", "bold")))
            command = [UNICL, *shlex.split(line)]
            done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
            output = [*done.stderr.rstrip().splitlines(), *done.stdout.rstrip().splitlines()]
            kept = output if len(output) <= SHOWN else [*output[:SHOWN], "…"]
            console.print(Text.from_ansi("\n".join(kept)))
            console.print()
    svg = console.export_svg(title="unicl")
    (DOCS / "terminal.svg").write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
