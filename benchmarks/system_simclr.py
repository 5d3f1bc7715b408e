"""Experiment `simclr` of systems.py: the claims of SimCLR (ICML 2020) on coloured digits of 16 px.

The hues of a digit are random, so that crops alone let an encoder solve the task by colour. An arm encodes 3,840 images
in two views; features are compared by the 5 nearest neighbours. Left out, since a CPU cannot decide it: larger
encoders, the paper's batches of 256 to 8,192 and its 100 to 1,000 epochs; `cifar10-resnet18-simclr` is for a GPU.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import interval, prepare_once, spread, train_here, verdict
from rich.table import Table

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
CROP, COLOUR = "crop: [0.5, 1.0]", "jitter: 0.8, grey: 0.2"
BASE = {"data.augment": f"{{{CROP}, {COLOUR}}}", "steps": "60", "batch.size": "64", "optim.lr": "2e-3"}


def sized(batch: int, images: int) -> dict[str, str]:
    """Return a batch size with its learning rate, in proportion to the square root, and steps for so many images."""
    return {"batch.size": str(batch), "steps": str(images // batch), "optim.lr": f"{2e-3 * (batch / 64) ** 0.5:.3g}"}


SHORT, LONG = 1024, 4096
CLASSIFIER = {"loss": "ce", "data.views": "1"}
ARMS: dict[str, dict[str, str]] = {
    "crop + colour": {},
    "crop only": {"data.augment": f"{{{CROP}}}"},
    "colour only": {"data.augment": f"{{{COLOUR}}}"},
    "untrained": {"steps": "1", "optim.lr": "1e-12"},
    "one side only": {"data.augment": f"[{{name: none}}, {{name: none, {CROP}, {COLOUR}}}]"},
    "no normalisation, temperature 1": {"loss.normalize": "false", "loss.temperature": "1.0"},
    "cross-entropy, crop": {**CLASSIFIER, "data.augment": f"{{{CROP}}}"},
    "cross-entropy, crop + colour": CLASSIFIER,
    **{f"batch {batch}, {images:,} images": sized(batch, images) for images in (SHORT, LONG) for batch in (16, 128)},
    "crop + weak colour": {"data.augment": f"{{{CROP}, jitter: 0.2, grey: 0.2}}"},
    "none: two equal views": {"data.augment": "none"},
    "temperature 0.05": {"loss.temperature": "0.05"},
    "temperature 1": {"loss.temperature": "1.0"},
    "no normalisation, temperature 10": {"loss.normalize": "false", "loss.temperature": "10.0"},
}


def run(out: Path, seeds: int) -> list[Table]:
    """Train the arms and return the table and the verdicts."""
    corpus = out / "colours"
    prepare_once(corpus, "--labels", "digits?coloured=true", "--holdout", "0")
    found = {
        name: [train_arm(out, name, changes, corpus, seed) for seed in range(seeds)] for name, changes in ARMS.items()
    }
    table = Table(title=f"1,200 coloured digits for training, 597 for testing, % ± sd over {seeds} seeds")
    for name in ("arm", "5-NN", "contrastive top-1", "mean norm of z", "own top-1", "CPU s"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for name, rows in found.items():
        cells = [column(rows, key) for key in ("knn_top1", "contrastive_top1")]
        norm = f"{sum(row['z_norm'] for row in rows) / seeds:.1f}" if "z_norm" in rows[0] else ""
        seconds = sum(row["cpu_s"] for row in rows) / seeds
        table.add_row(name, *cells, norm, column(rows, "top1"), f"{seconds:.0f}")
    return [table, verdicts(found)]


def train_arm(out: Path, name: str, changes: Mapping[str, str], corpus: Path, seed: int) -> dict[str, Any]:
    """Train one arm with one seed; it is measured once, at its end."""
    scored = "[zeroshot, {name: knn, k: 5}]" if "loss" in changes else "[{name: knn, k: 5}]"
    fixed = {
        "data.train": f"[{{corpus: {corpus}}}]",
        "model.image.width": "16",
        "data.augment_on": "device",
        "data.workers": "0",
        "log.every": "20",
        "eval": f"[{{corpus: {corpus}, split: test, every: 1000000, evaluators: {scored}}}]",
        "schedule.warmup": "0",
        "seed": str(seed),
    }
    words = [f"{key}={value}" for key, value in {**fixed, **BASE, **changes}.items()]
    folder = out / f"{name.replace(' ', '-').replace(',', '').replace(':', '').replace('+', 'and')}-{seed}"
    return train_here(folder, str(Path(__file__).with_name("simclr-digits.yaml")), *words)


def column(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return mean and spread of a figure; nothing if an arm has none."""
    return spread([row[key] for row in rows]) if key in rows[0] else ""


def verdicts(found: Rows) -> Table:
    """Return each claim with the paired difference that it makes, positive as published, and its verdict."""

    def minus(one: str, other: str, key: str = "knn_top1") -> list[float]:
        return [a[key] - b[key] for a, b in zip(found[one], found[other], strict=True)]

    both, plain = "crop + colour", "no normalisation, temperature 1"
    small, large = ([name for name in found if name.startswith(f"batch {batch},")] for batch in (16, 128))
    short, long = (minus(large[n], small[n]) for n in (0, 1))
    claims = {
        "crop + colour > crop only": minus(both, "crop only"),
        "crop + colour > colour only": minus(both, "colour only"),
        "crop + colour > the untrained encoder": minus(both, "untrained"),
        "both sides > one side": minus(both, "one side only"),
        "strong colour > weak colour for SimCLR": minus(both, "crop + weak colour"),
        "no colour > strong colour for cross-entropy": minus(
            "cross-entropy, crop", "cross-entropy, crop + colour", "top1"
        ),
        "without normalisation: contrastive top-1 rises": minus(plain, both, "contrastive_top1"),
        "without normalisation: features get worse": minus(both, plain),
        "batch 128 > 16, short training": short,
        "larger batches help less with more epochs": [a - b for a, b in zip(short, long, strict=True)],
    }
    table = Table("claim", "difference, points (95 %)", "verdict", title="Claims of the paper")
    for claim, differences in claims.items():
        change, half = interval(differences)
        found_out = verdict(differences)
        told = f"{found_out}: not decided at this scale" if found_out == "within noise" else found_out
        table.add_row(claim, f"{100 * change:+.1f} ± {100 * half:.1f}", told)
    return table
