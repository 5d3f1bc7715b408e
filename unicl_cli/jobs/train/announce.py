"""The first and the last lines of a training: data and run directory before torch is imported, metrics at the end."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from unicl_cli.data.manifest import Manifest, read_manifest
from unicl_cli.formats import RAW, format_duration, format_figure, label_figure
from unicl_cli.recipe.schema import Eval, Recipe
from unicl_cli.runs.status import read_validations
from unicl_cli.runs.validations import best_step, group_rows
from unicl_cli.storage.remote import place_of


def opening_lines(recipe: Recipe, run: Path) -> list[str]:
    """Return the run directory, and rows and classes of each corpus as its manifest has them."""
    lines = [f"run: {run}"]
    for item in recipe.data.train:
        manifest, _ = read_manifest(place_of(item.corpus))
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
    """Return the duration, the last and the best of each metric of the validations, and the command to run next."""
    lines = [f"done in {format_duration(seconds)}: {run}"]
    for name, rows in group_rows(read_validations(run)):
        for key in dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, float)):
            if not key.startswith(RAW):
                values = {int(row["step"]): row[key] for row in rows if isinstance(row.get(key), float)}
                lines.append(f"{name}: {label_figure(key)} {describe_values(key, values)}")
    return [*lines, f"next: {next_command(recipe, run)}"]


def describe_values(figure: str, values: Mapping[int, float]) -> str:
    """Return the last of the values of a metric by step, and the largest if there are several."""
    last, best = format_figure(figure, values[max(values)]), best_step(values)
    if best is None or len(values) == 1:
        return last
    return f"{last}, best {format_figure(figure, values[best])} at step {best:,}"


def next_command(recipe: Recipe, run: Path) -> str:
    """Return the command that measures the finished run, or that uses it if no corpus has rows to measure on."""
    name = shlex.quote(str(run))
    if recipe.loss.name == "supcon" or (recipe.eval and not any(map(_scores_classes, recipe.eval))):
        return f"unicl probe {name}"
    manifests = (read_manifest(place_of(item.corpus))[0] for item in recipe.data.train)
    return f"unicl eval {name}" if any(map(_can_be_measured, manifests)) else f"unicl zeroshot IMAGE --model {name}"


def _scores_classes(entry: Eval) -> bool:
    """Return True if an entry has the evaluators of `unicl eval`, which need more than image features."""
    return entry.evaluators is None or any(each.name in ("zeroshot", "retrieval") for each in entry.evaluators)


def _can_be_measured(manifest: Manifest) -> bool:
    return any(shard.split in ("test", "val") for shard in manifest.shards)
