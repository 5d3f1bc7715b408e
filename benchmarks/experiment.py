"""Tools of the experiments: `unicl` in processes of its own or in this one, intervals over seeds, cells of tables."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

UNICL = str(Path(sys.executable).with_name("unicl"))


def run_unicl(*words: str) -> str:
    """Run a command and return its standard output; end the program if it fails."""
    done = subprocess.run([UNICL, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"unicl {' '.join(words)}: exit code {done.returncode}")
    return done.stdout


def train_here(run: Path, recipe: str, *changes: str) -> dict[str, Any]:
    """Train a recipe in this process, which saves the imports of a fresh one, and return what was measured.

    That is the last line of ``eval.jsonl`` and of ``metrics.jsonl``, and ``cpu_s``, the CPU seconds of this process. A
    run that is finished is not repeated.
    """
    from unicl_cli.cli import main  # brings torch

    kept = run.parent / f"{run.name}.json"
    if not kept.exists():
        begun = time.process_time()
        if code := main(["train", recipe, *changes, "--run-dir", str(run), "--devices", "cpu:1", "-q"]):
            sys.exit(f"unicl train {recipe} {' '.join(changes)}: exit code {code}")
        found: dict[str, Any] = {"cpu_s": time.process_time() - begun}
        for name in ("metrics", "eval"):
            found |= json.loads((run / f"{name}.jsonl").read_text().splitlines()[-1])
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def prepare_once(corpus: Path, *sources: str) -> None:
    """Prepare a corpus unless it is there."""
    if not corpus.exists():
        run_unicl("prepare", *sources, "-o", str(corpus), "-q")


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of shares in percent."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}" if len(values) > 1 else f"{100 * values[0]:.1f}"


def verdict(differences: Sequence[float]) -> str:
    """Return what paired differences, positive as published, say of a claim: by their 95 % interval (Student's t)."""
    centre, half = interval(differences)
    if not abs(centre) > half:
        return "within noise"
    return "as published" if centre > 0 else "opposite"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval (Student's t)."""
    centre, count = mean(values), len(values)
    if count < 2:
        return centre, float("nan")
    deviation = (sum((value - centre) ** 2 for value in values) / (count - 1)) ** 0.5
    return centre, float(student.ppf(0.975, count - 1)) * deviation / count**0.5


def cell(values: Sequence[float], base: Sequence[float]) -> str:
    """Return the mean in percent; beside it the paired difference from ``base`` with its interval, unless it is it."""
    shown = f"{100 * mean(values):.1f}"
    if values == base:
        return shown
    change, half = interval([value - other for value, other in zip(values, base, strict=True)])
    return f"{shown} ({100 * change:+.1f} ± {100 * half:.1f})"
