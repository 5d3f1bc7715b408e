"""The experiment on `loss.own_text`: accuracy and retrieval with rows that have a label and a caption of their own.

    python benchmarks/own_text.py --out DIR --seeds 5

Three corpora of 3,000 `shapes` each: all rows with both (together), half with a label and half with a caption
(separate), half with both and half with a caption (both). Every arm sees the same number of images and is measured on
the same 960 test images, with all 48 classes. Differences from own_text 0 are paired by seed. Runs that exist are kept.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

UNICL = str(Path(sys.executable).with_name("unicl"))
CORPORA = {
    "together": ["--labels", "shapes?captions=true&count=3000&test=1"],
    "separate": ["--labels", "shapes?count=1500&test=1", "--captions", "shapes?count=1500&test=1"],
    "both": ["--labels", "shapes?captions=true&count=1500&test=1", "--captions", "shapes?count=1500&test=1"],
    "test": ["--labels", "shapes?captions=true&count=1&test=960"],
}
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
FIGURES = {"top1": "top-1", "r1": "text to image R@1", "r10": "R@10"}


class Arm(NamedTuple):
    """A corpus and the share of the target on a row's own text; without rows with both, the share changes nothing."""

    corpus: str
    share: float


ARMS = [
    *(Arm("together", share) for share in SHARES),
    Arm("separate", 0.0),
    *(Arm("both", share) for share in SHARES),
]


def run_unicl(*words: str) -> str:
    done = subprocess.run([UNICL, *words, "-q"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"unicl {' '.join(words)}: exit code {done.returncode}")
    return done.stdout


def measure(arm: Arm, seed: int, out: Path, steps: int) -> Mapping[str, float]:
    """Train an arm, or go on with it, and return its figures on the test images."""
    file = out / f"{arm.corpus}-{arm.share:g}-{seed}.json"
    if not file.exists():
        run = str(out / "runs" / file.stem)
        changes = [f"data.train.0.corpus={out / arm.corpus}", f"loss.own_text={arm.share}", f"seed={seed}", "eval=[]"]
        run_unicl("train", "shapes-unicl", *changes, f"steps={steps}", "--run-dir", run)
        (found,) = json.loads(run_unicl("eval", run, "--data", str(out / "test"), "--json"))["data"]
        recall = found["retrieval"]["text_to_image"]
        file.write_text(json.dumps({"top1": found["top1"], "r1": recall["r1"], "r10": recall["r10"]}))
    return json.loads(file.read_text())


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval (Student's t)."""
    centre, count = mean(values), len(values)
    if count < 2:
        return centre, float("nan")
    deviation = (sum((value - centre) ** 2 for value in values) / (count - 1)) ** 0.5
    return centre, float(student.ppf(0.975, count - 1)) * deviation / count**0.5


def cell(values: list[float], base: list[float]) -> str:
    """Return the mean in percent; beside it the paired difference from ``base`` with its interval, unless it is it."""
    shown = f"{100 * mean(values):.1f}"
    if values == base:
        return shown
    change, half = interval([value - other for value, other in zip(values, base, strict=True)])
    return f"{shown} ({100 * change:+.1f} ± {100 * half:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    for name, sources in CORPORA.items():
        run_unicl("prepare", *sources, "-o", str(options.out / name), "--holdout", "0")
    results: dict[Arm, list[Mapping[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:
            results[arm].append(measure(arm, seed, options.out, options.steps))
    table = Table("rows", "own_text", *FIGURES.values(), title=f"{options.seeds} seeds, {options.steps} steps")
    for arm, found in results.items():
        base = results[Arm(arm.corpus, 0.0)]
        cells = [cell([row[key] for row in found], [row[key] for row in base]) for key in FIGURES]
        table.add_row(arm.corpus, f"{arm.share:g}", *cells)
    Console().print(table)
    rows = [{**arm._asdict(), "runs": found} for arm, found in results.items()]
    (options.out / "own-text.json").write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
