"""The first and the last lines of a training: data and run directory before torch is imported, figures at the end."""

import shlex
from pathlib import Path

from unicl_cli.data.manifest import Manifest, read_manifest
from unicl_cli.formats import format_duration, format_share, label_figure
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.status import read_validations

FIGURES = ("top1", "text_to_image_r1", "image_to_text_r1")
"""Figures of a validation that the end of a training shows."""


def opening_lines(recipe: Recipe, run: Path) -> list[str]:
    """Return the run directory, and rows and classes of each corpus as its manifest has them."""
    lines = [f"run: {run}"]
    for item in recipe.data.train:
        manifest, _ = read_manifest(Path(item.corpus))
        rows: dict[str, int] = {}
        for shard in manifest.shards:
            if shard.split == item.split:
                rows[shard.kind] = rows.get(shard.kind, 0) + shard.rows
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in rows.items())
        used = [f"{name} {value:g}" for name in ("fraction", "limit") if (value := getattr(item, name)) is not None]
        line = f"data: {item.corpus} {item.split}: rows {sum(rows.values()):,} ({kinds}), classes"
        lines.append(", ".join([f"{line} {len(manifest.classes):,}", *used]))
    return lines


def closing_lines(recipe: Recipe, run: Path, seconds: float) -> list[str]:
    """Return the duration, the last and the best of each figure of the validations, and the command to run next."""
    lines = [f"done in {format_duration(seconds)}: {run}"]
    found: dict[tuple[str, str, str], list[tuple[float, int]]] = {}
    for row in read_validations(run):
        for key, value in row.items():
            if key in FIGURES and isinstance(value, float):
                of = str(row.get("corpus", "?")), str(row.get("split", "?")), key
                found.setdefault(of, []).append((value, row["step"]))
    for (corpus, split, key), values in found.items():
        best, step = max(values, key=lambda entry: entry[0])
        more = f", best {format_share(best)} at step {step:,}" if len(values) > 1 else ""
        lines.append(f"{corpus} {split}: {label_figure(key)} {format_share(values[-1][0])}{more}")
    return [*lines, f"next: {next_command(recipe, run)}"]


def next_command(recipe: Recipe, run: Path) -> str:
    """Return the command that measures the finished run, or that uses it if no corpus has rows to measure on."""
    name = shlex.quote(str(run))
    if recipe.loss.name == "supcon":
        return f"unicl probe {name}"
    manifests = (read_manifest(Path(item.corpus))[0] for item in recipe.data.train)
    return f"unicl eval {name}" if any(map(_can_be_measured, manifests)) else f"unicl zeroshot IMAGE --model {name}"


def _can_be_measured(manifest: Manifest) -> bool:
    return any(shard.split in ("test", "val") for shard in manifest.shards)
