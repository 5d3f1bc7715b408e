"""Experiment `objectives` of systems.py: UniCL, SupCon, cross-entropy, CLIP and SimCLR on the same 300 digits.

Every arm encodes as many augmented images with the same tower: 200 steps of 128, or 100 steps of 128 in two views.
SupCon's second stage, a linear head on the frozen tower, comes on top. Top-1 is that of each arm's own classifier:
prompts, the head, or for SimCLR the linear probe.
"""

from pathlib import Path
from typing import NamedTuple

from experiment import interval, prepare_once, spread, train_here, verdict
from rich.table import Table

SCORED, FEATURES = "[zeroshot, knn, probe]", "[knn, probe]"


class Arm(NamedTuple):
    """One line of the table: a recipe, its changes, its evaluators, and the figure of its own classifier."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()
    evaluators: str = SCORED
    own: str = "top1"


STAGES = (
    "stages=[{steps: 100, data: {views: 2}, eval: []}, "
    "{loss: ce, steps: 100, data: {views: 1}, model: {image: {freeze: true}}}]"
)
ARMS = (
    Arm("cross-entropy", "digits-ce"),
    Arm("UniCL", "digits-unicl"),
    Arm("UniCL, softmax over texts alone", "digits-image-term"),
    Arm("CLIP on prompts", "digits-clip-joint"),
    Arm("SupCon, two stages", "digits-supcon", (STAGES,)),
    Arm("SimCLR and a probe", "digits-simclr", ("steps=100",), FEATURES, "probe_top1"),
)


def run(out: Path, seeds: int) -> list[Table]:
    """Train the arms and return the table."""
    corpus = out / "digits"
    prepare_once(corpus, "--labels", "digits?limit=300", "--holdout", "0")
    found = {arm.name: [train_arm(out, arm, corpus, seed) for seed in range(seeds)] for arm in ARMS}
    base = [each["top1"] for each in found["cross-entropy"]]
    table = Table(title=f"300 digits for training, 597 for testing: top-1, % ± sd over {seeds} seeds")
    for name in ("objective", "own classifier", "minus cross-entropy (95 %)", "k-NN", "linear probe", "CPU s"):
        table.add_column(name, justify="left" if name == "objective" else "right")
    for arm in ARMS:
        rows = found[arm.name]
        own = [row[arm.own] for row in rows]
        change, half = interval([value - other for value, other in zip(own, base, strict=True)])
        shown = "" if arm.name == "cross-entropy" else f"{100 * change:+.1f} ± {100 * half:.1f}"
        features = [spread([row[key] for row in rows]) for key in ("knn_top1", "probe_top1")]
        seconds = sum(row["cpu_s"] for row in rows) / seeds
        table.add_row(arm.name, spread(own), shown, *features, f"{seconds:.0f}")
    unicl = [row["top1"] for row in found["UniCL"]]
    claims = Table("claim", "verdict", title="UniCL's claims (CVPR 2022, section 4.1)")
    claims.add_row("UniCL ≥ cross-entropy", verdict([a - b for a, b in zip(unicl, base, strict=True)]))
    for text, name in (
        ("both directions ≥ one", "UniCL, softmax over texts alone"),
        ("UniCL ≥ CLIP on prompts", "CLIP on prompts"),
        ("UniCL ≈ SupCon, without its second stage", "SupCon, two stages"),
    ):
        claims.add_row(text, verdict([a - row["top1"] for a, row in zip(unicl, found[name], strict=True)]))
    return [table, claims]


def train_arm(out: Path, arm: Arm, corpus: Path, seed: int) -> dict[str, float]:
    """Train one arm with one seed; it is measured once, at its end."""
    changes = (
        f"data.train=[{{corpus: {corpus}}}]",
        "data.image_size=16",
        "data.augment={name: shift, shift: 2, noise: 0.15}",
        "data.augment_on=device",
        f"eval=[{{corpus: {corpus}, split: test, every: 1000000, evaluators: {arm.evaluators}}}]",
        f"seed={seed}",
    )
    name = arm.name.replace(" ", "-").replace(",", "")
    return train_here(out / f"{name}-{seed}", arm.recipe, *changes, *arm.changes)
