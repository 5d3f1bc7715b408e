"""Detection transfer: the same detector on towers trained on labels, captions, or half of each, and on a random one.

UniCL (CVPR 2022, section 4.3) compares such towers by box AP on COCO. Here scenes of drawn shapes stand for COCO. Each
tower sees 3,000 different images, equally often, and each detector the same scenes in the same order.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from experiment import cell, interval, run_unicl
from rich.table import Table

TOWER_STEPS, DETECTOR_STEPS = 150, 100
CORPORA = {
    "labels": ("--labels", "shapes?count=3000&test=1"),
    "captions": ("--captions", "shapes?count=3000&test=1"),
    "both": ("--labels", "shapes?count=1500&test=1", "--captions", "shapes?count=1500&test=1"),
}
ARMS = {
    "random tower": ("both", ("steps=1", "optim.lr=1e-9")),
    "labels": ("labels", (f"steps={TOWER_STEPS}",)),
    "captions": ("captions", (f"steps={TOWER_STEPS}",)),
    "half labels, half captions": ("both", (f"steps={TOWER_STEPS}",)),
}
"""Arm -> its corpus and the changes of the recipe shapes-unicl."""


def train_tower(arm: str, seed: int, out: Path) -> str:
    """Train the tower of an arm; return its run."""
    corpus, changes = ARMS[arm]
    run = str(out / "towers" / f"{arm}-{seed}")
    run_unicl(
        *("train", "shapes-unicl", f"data.train.0.corpus={out / corpus}", "eval=[]", f"seed={seed}", *changes),
        *("--run-dir", run, "-q"),
    )
    return run


def measure(arm: str, seed: int, out: Path) -> Mapping[str, float]:
    """Train a tower and a detector on it, or take them as they are; return the figures on the test scenes."""
    file = out / f"{arm}-{seed}.json"
    if not file.exists():
        run = str(out / "detectors" / f"{arm}-{seed}")
        changes = ("boxes_only=true", f"steps={DETECTOR_STEPS}", "milestones=[80]", f"seed={seed}", "log_every=5")
        tower = train_tower(arm, seed, out)
        run_unicl(
            "detect", "train", "shapes", *changes, "--data", str(out / "scenes"), "--model", tower, "--run-dir", run
        )
        box = json.loads(run_unicl("detect", "eval", run, "--json"))["box"]
        lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines[-4:]]  # of the last 20 steps
        figures = {"ap": box["ap"], "ap50": box["ap50"], "loss": sum(losses) / len(losses)}
        file.write_text(json.dumps(figures))
    return json.loads(file.read_text())


def run(out: Path, seeds: int) -> list[Table]:
    """Run all arms; return their table."""
    for name, sources in CORPORA.items():
        run_unicl("prepare", *sources, "-o", str(out / name), "--holdout", "0", "-q")
    if not (out / "scenes").exists():
        run_unicl("detect", "shapes", str(out / "scenes"), "--count", "200", "--test", "100")
    found = {arm: [measure(arm, seed, out) for seed in range(seeds)] for arm in ARMS}
    base = list(found.values())[-1]
    title = f"detection transfer: {seeds} seeds, {DETECTOR_STEPS} steps; differences from half labels, half captions"
    table = Table("tower", "box AP50", "box AP", "loss of the last 20 steps", title=title)
    for arm, figures in found.items():
        cells = [cell([row[key] for row in figures], [row[key] for row in base]) for key in ("ap50", "ap")]
        mean, half = interval([row["loss"] for row in figures])
        table.add_row(arm, *cells, f"{mean:.3f} ± {half:.3f}")
    return [table]
