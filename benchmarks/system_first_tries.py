"""CLIP's first tries: the images that each objective has seen when it reaches an equal zero-shot accuracy.

CLIP (ICML 2021), Fig. 2, small: bag-of-words contrast, bag-of-words prediction, CLIP with its Transformer and caption
prediction, each with the rate that was best for it in earlier trials. The data are `coloured_digits.py`.
"""

import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from experiment import run_unicl
from rich.table import Table

SOURCE = Path(__file__).with_name("coloured_digits.py")
PICTURE = Path(__file__).parents[1] / "docs" / "first-tries.png"
TEXT = {"name": "transformer", "width": 64, "layers": 1, "heads": 4}
DECODER = {"name": "captioner", "width": 64, "layers": 1, "heads": 4}
BATCH = 128


class Arm(NamedTuple):
    """An objective: loss, text tower, learning rate, images at which its run ends, steps between two evaluations."""

    loss: object
    text: object
    rate: float
    most: int = 25_600
    every: int = 10


ARMS = {
    "bag of words, contrastive": Arm("clip", {"name": "cbow", "width": 64}, 1e-2),
    "bag of words, prediction": Arm("bow", None, 1e-2),
    "Transformer, contrastive (CLIP)": Arm("clip", TEXT, 3e-3),
    "Transformer, caption prediction": Arm(DECODER, None, 3e-3, most=102_400, every=40),
}
LEVELS = (0.5, 0.7, 0.9)
COMPARED = 0.7


def recipe_of(corpus: Path, arm: Arm, seed: int) -> str:
    """Return the recipe of an arm as JSON, which is YAML."""
    return json.dumps({
        "name": "first-tries",
        "seed": seed,
        "data": {"train": [{"corpus": str(corpus)}], "image_size": 16, "augment": "none"},
        "model": {
            "image": {"name": "cnn", "width": 32, "stages": 2},
            "text": arm.text,
            "embed_dim": 64,
            "tokenizer": "corpus",
            "context_length": 24,
        },
        "loss": arm.loss,
        "batch": {"size": BATCH},
        "samples": arm.most,
        "optim": {"name": "adamw", "lr": arm.rate, "weight_decay": 0.01},
        "schedule": {"name": "constant", "warmup": 20},
        "eval": [{"corpus": str(corpus), "split": "test", "every": arm.every}],
        "checkpoint": {"every": 1000, "keep": 1},
    })  # fmt: skip


def train_arm(out: Path, arm: str, seed: int) -> list[list[float]]:
    """Train an arm and return [images seen, accuracy] of each evaluation; a finished run is read from its file."""
    kept = out / f"{arm.replace(' ', '-').replace(',', '')}-{seed}.json"
    if not kept.is_file():
        file, run = kept.with_suffix(".yaml"), kept.with_suffix("")
        file.write_text(recipe_of(out / "corpus", ARMS[arm], seed), encoding="utf-8")
        run_unicl("train", str(file), "--run-dir", str(run), "--devices", "cpu:1", "-q")
        lines = [json.loads(line) for line in (run / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
        kept.write_text(json.dumps([[line["step"] * BATCH, line["top1"]] for line in lines]), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def images_at(curve: list[list[float]], level: float) -> float:
    """Return the images seen at the first evaluation that reaches ``level``; infinite if none does."""
    return next((seen for seen, accuracy in curve if accuracy >= level), float("inf"))


def show_count(images: float) -> str:
    return "never" if images == float("inf") else f"{images:,.0f}"


def run(out: Path, seeds: int) -> list[Table]:
    """Train all arms, draw the picture, and return the images at each level: median and range over seeds."""
    corpus = out / "corpus"
    out.mkdir(parents=True, exist_ok=True)
    sources = ("--captions", "coloured-digits", "--labels", "coloured-digits", "--holdout", "0")
    run_unicl("--plugin", str(SOURCE), "prepare", *sources, "-o", str(corpus), "-q", "--workers", "1")
    rounds = [{arm: train_arm(out, arm, seed) for arm in ARMS} for seed in range(seeds)]
    curves = {arm: [own[arm] for own in rounds] for arm in ARMS}
    draw_curves(curves, PICTURE)
    table = Table("objective", *(f"{level:.0%}" for level in LEVELS), title="Images seen until a zero-shot accuracy")
    for arm, own in curves.items():
        cells: list[str] = []
        for level in LEVELS:
            seen = sorted(images_at(curve, level) for curve in own)
            cells.append(f"{show_count(median(seen))} ({show_count(seen[0])} to {show_count(seen[-1])})")
        table.add_row(arm, *cells)
    return [table, compare_arms(curves)]


def compare_arms(curves: dict[str, list[list[list[float]]]]) -> Table:
    """Return the factors between the medians of neighbouring objectives, beside the published ones."""
    order = [list(ARMS)[place] for place in (0, 1, 3)]
    published = ("4×", "3×")
    table = Table("fewer images", "than", f"factor at {COMPARED:.0%}", "published", "direction")
    for (first, second), paper in zip(pairwise(order), published, strict=True):
        fewer, more = (median(images_at(curve, COMPARED) for curve in curves[arm]) for arm in (first, second))
        factor = f"{more / fewer:.1f}×" if more < float("inf") else f"more than {ARMS[second].most / fewer:.1f}×"
        verdict = "as published" if fewer < more else "within noise" if fewer == more else "opposite"
        table.add_row(first, second, factor, paper, verdict)
    return table


def draw_curves(curves: dict[str, list[list[list[float]]]], file: Path) -> None:
    """Draw the mean accuracy over seeds against the images seen, and each seed as a thin line."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), dpi=90)
    for number, (arm, own) in enumerate(curves.items()):
        seen = [images for images, _ in own[0]]
        means = [sum(curve[place][1] for curve in own) / len(own) for place in range(len(seen))]
        axes.plot(seen, [100 * mean for mean in means], color=f"C{number}", linewidth=2, label=arm)
        for curve in own:
            axes.plot(seen, [100 * accuracy for _, accuracy in curve], color=f"C{number}", linewidth=0.5, alpha=0.5)
    axes.axhline(100 / 10, color="grey", linestyle=":", linewidth=1)
    axes.text(seen[0], 11, "chance", color="grey", fontsize=8)
    ticks = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
    axes.set(xscale="log", xlabel="images seen", ylabel="zero-shot accuracy (%), ten digits", ylim=(0, 100))
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None})
