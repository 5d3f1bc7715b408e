"""The first and the last lines of a training: data and run directory before torch is imported, figures at the end."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from unicl_cli.data.manifest import Manifest, read_manifest
from unicl_cli.formats import format_duration, format_share, label_figure
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.status import read_validations
from unicl_cli.runs.validations import best_step, group_rows

FIGURES = ("top1", "map", "text_to_image_r1", "image_to_text_r1")
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
    for name, rows in group_rows(read_validations(run)):
        for key in FIGURES:
            values = {int(row["step"]): float(row[key]) for row in rows if isinstance(row.get(key), float)}
            if values:
                lines.append(f"{name}: {label_figure(key)} {describe_values(values)}")
    return [*lines, f"next: {next_command(recipe, run)}"]


def describe_values(values: Mapping[int, float]) -> str:
    """Return the last of the values by step, and the best if there are several."""
    last, best = values[max(values)], best_step(values)
    more = f", best {format_share(values[best])} at step {best:,}" if best is not None and len(values) > 1 else ""
    return f"{format_share(last)}{more}"


def next_command(recipe: Recipe, run: Path) -> str:
    """Return the command that measures the finished run, or that uses it if no corpus has rows to measure on."""
    name = shlex.quote(str(run))
    if recipe.loss.name == "supcon":
        return f"unicl probe {name}"
    manifests = (read_manifest(Path(item.corpus))[0] for item in recipe.data.train)
    return f"unicl eval {name}" if any(map(_can_be_measured, manifests)) else f"unicl zeroshot IMAGE --model {name}"


def _can_be_measured(manifest: Manifest) -> bool:
    return any(shard.split in ("test", "val") for shard in manifest.shards)
