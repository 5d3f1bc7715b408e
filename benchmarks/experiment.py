"""Tools of the experiments: `unicl` in processes of its own, paired intervals over seeds, cells of tables."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from scipy.stats import t as student

UNICL = str(Path(sys.executable).with_name("unicl"))


def run_unicl(*words: str) -> str:
    """Run a command and return its standard output; end the program if it fails."""
    done = subprocess.run([UNICL, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"unicl {' '.join(words)}: exit code {done.returncode}")
    return done.stdout


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
