"""The whole workflow on built-in real data: prepare, train, compare, probe and zeroshot as typed commands."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path("quickstart")
UNICL = str(Path(sys.executable).with_name("unicl"))
LABELLED = 7
"""Digits 0 to 6 have labels; 7, 8 and 9 appear in captions only."""
ARMS = {
    "digits-label-only": "labels only",
    "digits-caption-only": "captions only",
    "quickstart": "UniCL: labels + captions",
}
console = Console()


def run_unicl(command: str, *, shown: bool = True) -> str:
    """Print a command, run it and return its stdout."""
    console.print(f"[bold cyan]$ unicl {command}[/]", highlight=False, soft_wrap=True)
    done = subprocess.run([UNICL, *shlex.split(command)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"quickstart: the command above failed (exit code {done.returncode})")
    if shown:
        console.print(done.stdout, markup=False, highlight=False, soft_wrap=True)
    return done.stdout


def train_arm(recipe: str, changes: str) -> Path:
    """Train an arm, unless it is trained already; return its run."""
    return Path(run_unicl(f"train {recipe} {changes} run_dir={ROOT}/runs/{{name}}-{{hash8}}").strip())


def accuracies(classes: list[dict[str, Any]], arm: int) -> list[str]:
    """Return the accuracies of an arm on all ten digits, on those with labels and on those without, in percent."""
    parts = (classes, classes[:LABELLED], classes[LABELLED:])
    return [f"{100 * sum(c['recall'][arm] * c['n'] for c in part) / sum(c['n'] for c in part):.1f}" for part in parts]


def save_seven() -> Path:
    """Save a held-out seven as a file for `unicl zeroshot`."""
    from unicl_cli.data.corpus import open_corpus

    table = open_corpus(ROOT / "corpus").table("test", "labels")
    number = table.column("label").to_pylist().index(LABELLED)
    path = ROOT / "a-seven.png"
    path.write_bytes(table.read(number).image)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("full", "small"), default="full", help="small: two arms of 20 steps, for CI")
    small = parser.parse_args().size == "small"
    began = time.monotonic()
    run_unicl(f'prepare --labels "digits?classes=0-6&limit=600" --captions "digits?limit=300" -o {ROOT / "corpus"}')
    changes = "eval=[] steps=20" if small else "eval=[]"
    arms = [recipe for recipe in ARMS if not small or recipe != "digits-caption-only"]
    runs = [train_arm(recipe, changes) for recipe in arms]
    report = json.loads(run_unicl(f"compare {' '.join(map(str, runs))} --json", shown=False))
    run = runs[arms.index("quickstart")]
    run_unicl(f"prepare --labels digits -o {ROOT / 'all-labelled'}")
    run_unicl(f"probe {run} --data {ROOT / 'all-labelled'}")
    run_unicl(
        f"zeroshot {save_seven()} --model {run} --classes zero,one,two,three,four,five,six,seven,eight,nine --top-k 3"
    )
    table = Table(title="597 held-out digits, classified from their names alone (%)")
    for heading in ("learned from", "all ten", "0-6, labelled", "7-9, never labelled"):
        table.add_column(heading, justify="left" if heading == "learned from" else "right")
    for arm, recipe in enumerate(arms):
        table.add_row(ARMS[recipe], *accuracies(report["data"][0]["per_class"], arm))
    console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s. Next: your own images, docs/tutorial.md", highlight=False)


if __name__ == "__main__":
    main()
