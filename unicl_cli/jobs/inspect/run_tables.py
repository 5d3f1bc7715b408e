"""Terminal tables and HTML pages of a checkpoint and of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from unicl_cli.evaluate.tables import make_table
from unicl_cli.formats import RAW, byte_size, count_of, format_age, format_figure, format_time, label_figure
from unicl_cli.jobs.runs import sparkline
from unicl_cli.pages import html
from unicl_cli.pages.html import Html, section, tag
from unicl_cli.runs.validations import group_rows, name_rows

ACROSS = 4
"""Metrics of validations side by side in a terminal."""
LEADING = 6
"""Metrics of validations in the large tiles of a page."""
FIGURES = ("loss", "excess_loss", "lr", "logit_scale", "grad_norm", "img_s", "label_share", "unique_text", "padding")
"""Metrics shown from the last line of metrics.jsonl."""


def key_value_table(title: str, rows: Mapping[str, str]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, show_header=False, min_width=min(76, len(title) + 4))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def checkpoint_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a checkpoint in words; facts missing from a damaged one are left out."""
    optimizer = "no (weights only)"
    if facts["optimizer"]:
        optimizer = "yes: training can continue" if facts["whole"] else "yes"
    versions = facts.get("versions", {})
    words = {
        "step": f"{facts['step']:,} of {facts['steps']:,}" if {"step", "steps"} <= facts.keys() else None,
        "files": "complete: sizes and checksums match" if facts["whole"] else "damaged",
        "parameters": f"{facts['parameters']:,}, {', '.join(facts['types'])}" if "parameters" in facts else None,
        "embed_dim": facts.get("embed_dim"),
        "logit_scale": f"{facts['logit_scale']:.2f}" if "logit_scale" in facts else None,
        "moving average": "yes" if facts["ema"] else "no",
        "optimizer": optimizer,
        "batch": facts.get("batch_size"),
        "processes": facts.get("world"),
        "seed": facts.get("seed"),
        "recipe": facts.get("recipe", "")[:16] or None,
        **{f"corpus {name}": str(checksum)[:16] for name, checksum in facts.get("corpora", {}).items()},
        "written by": ", ".join(f"{name} {versions[name]}" for name in ("unicl", "torch") if name in versions) or None,
    }
    return {name: str(value)[:60] for name, value in words.items() if value is not None}


def file_lines(facts: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (f["file"], f["state"], f"{f['tensors']:,}" if "tensors" in f else "–", byte_size(f["bytes"]))
        for f in facts["files"]
    ]


def tower_lines(facts: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    shown = ((t, "–" if t["rms"] is None else f"{t['rms']:.3g}") for t in facts.get("towers", ()))
    return [(t["tower"], f"{t['tensors']:,}", f"{t['parameters']:,}", f"{t['buffers']:,}", rms) for t, rms in shown]


FILE_HEAD, TOWER_HEAD = ("file", "state", "tensors", "size"), ("tower", "tensors", "parameters", "buffers", "rms")


def checkpoint_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    yield key_value_table(f"Checkpoint {facts['path']}", checkpoint_rows(facts))
    table = make_table("Files", FILE_HEAD[:2], FILE_HEAD[2:])
    for line in file_lines(facts):
        table.add_row(*line)
    yield table
    if lines := tower_lines(facts):
        table = make_table("Weights", TOWER_HEAD[:1], TOWER_HEAD[1:])
        for line in lines:
            table.add_row(*line)
        yield table


def checkpoint_page(facts: Mapping[str, Any]) -> str:
    rows = checkpoint_rows(facts)
    large = html.numbers([(name, rows[name]) for name in ("step", "parameters", "embed_dim") if name in rows])
    bars = [(t["tower"], float(t["parameters"]), f"{t['parameters']:,}") for t in facts.get("towers", ())]
    parts = [
        large,
        notes_section(facts),
        section("Facts", html.table(("", ""), list(rows.items()), left=2)),
        section("Files", html.table(FILE_HEAD, file_lines(facts), left=2)),
        section("Parameters", html.bar_chart(bars), html.table(TOWER_HEAD, tower_lines(facts))),
    ]
    lead = f"{facts['path']} · {'complete' if facts['whole'] else 'damaged'}"
    return html.build_page(f"Checkpoint {Path(facts['path']).name}", lead, *(part for part in parts if part))


def notes_section(facts: Mapping[str, Any]) -> Html:
    return section("Notes", html.bullet_list(facts["notes"])) if facts["notes"] else Html("")


# -- a run ----------------------------------------------------------------------------------------------------------


def run_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the state and the main settings of a run, in words."""
    at = f" at step {facts['step']:,} of {facts['steps']:,}" if facts.get("steps") else ""
    rows = {"state": f"{facts['state']}{at}, {format_age(facts['age_s'])} ago"}
    recipe = facts["recipe"]
    if recipe:
        rows |= {
            "data": ", ".join(recipe["corpora"]),
            "towers": f"{recipe['image']} at {recipe['image_size']} px, {recipe['text'] or 'no text tower'}",
            "loss": recipe["loss"],
            "optimizer": f"{recipe['optimizer']}, lr {recipe['lr']:g}",
            "batch": f"{recipe['batch_size']:,}",
            "length": ", ".join(f"{value:,} {key}" for key, value in recipe["length"].items()),
        }
    if facts["model"]:
        averaged = ", with a moving average" if facts["model"]["ema"] else ""
        values = count_of(facts["model"]["values"], "value")
        rows["model"] = f"{values}, {byte_size(facts['model']['bytes'])}{averaged}"
    if "continue" in facts:
        rows["continue with"] = facts["continue"]
    return rows


def last_figures(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    last = facts["last"] or {}
    return [
        (label_figure(name), format_figure(name, last[name]))
        for name in FIGURES
        if isinstance(last.get(name), int | float)
    ]


def losses(facts: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(point["step"], point["loss"]) for point in facts["curve"]]


def validation_names(facts: Mapping[str, Any]) -> list[str]:
    """Return the names of all metrics of the validations, in order."""
    return list(
        dict.fromkeys(k for row in facts["validations"] for k, value in row.items() if isinstance(value, float))
    )


def validation_lines(facts: Mapping[str, Any], names: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Return head and rows, of all metrics or of ``names``; a metric missing from a validation leaves a gap."""
    rows = facts["validations"]
    names = validation_names(facts) if names is None else names
    lines = [
        [
            f"{row['step']:,}",
            of,
            *(format_figure(name, row[name]) if isinstance(row.get(name), float) else "–" for name in names),
        ]
        for row, of in zip(rows, name_rows(rows), strict=True)
    ]
    return ["step", "data", *map(label_figure, names)], lines


def validation_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    """Yield tables that fit a terminal: one for each direction of a retrieval, and at most ``ACROSS`` metrics in each.

    Metrics of the trained weights are shown only on the page if there are those of their average.
    """
    groups: dict[str, list[str]] = {}
    for name in validation_names(facts):
        if not name.startswith(RAW):
            groups.setdefault(label_figure(name).rpartition("R@")[0].strip(), []).append(name)
    for direction, names in groups.items():
        title = f"Validations, {direction}" if direction else "Validations"
        for first in range(0, len(names), ACROSS):
            head, lines = validation_lines(facts, names[first : first + ACROSS])
            table = make_table(title, head[:2], [name.removeprefix(direction).strip() for name in head[2:]])
            for line in lines:
                table.add_row(*line)
            yield table


def validation_curves(facts: Mapping[str, Any]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return the (step, value) points of each metric of the validations, by (metric, data); the main entry first."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for of, rows in group_rows(facts["validations"]):
        for row in rows:
            for name, value in row.items():
                if isinstance(value, float):
                    found.setdefault((name, of), []).append((row["step"], value))
    return found


def checkpoint_lines(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (c["checkpoint"], "complete (by size)" if c["whole"] else "damaged", byte_size(c["bytes"]))
        for c in facts["checkpoints"]
    ]


def run_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    rows = run_rows(facts)
    curve = losses(facts)
    if len(curve) > 1:
        values = [loss for _, loss in curve]
        rows["loss curve"] = f"{values[0]:.3f} {sparkline(values, 32)} {values[-1]:.3f}"
    rows |= {f"last {name}": value for name, value in last_figures(facts)}
    yield key_value_table(f"Run {facts['path']}", rows)
    yield from validation_tables(facts)
    if facts["checkpoints"]:
        table = make_table("Checkpoints", ("checkpoint", "state"), ("size",))
        for line in checkpoint_lines(facts):
            table.add_row(*line)
        yield table


def main_figures(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the metrics that a page leads with: those of the last validations, then loss and speed."""
    validated = [
        (f"{label_figure(name)} · {of}", format_figure(name, points[-1][1]))
        for (name, of), points in validation_curves(facts).items()
    ]
    last = dict(last_figures(facts))
    return validated[:LEADING] + [(name, last[name]) for name in ("loss", "img/s") if name in last]


def curve_sections(facts: Mapping[str, Any]) -> list[Html]:
    """Return a chart for each metric of the validations, then the loss; a metric measured once has none."""
    charts = [
        section(
            f"{label_figure(name)} · {of}", html.line_chart(points, name="steps", form=partial(format_figure, name))
        )
        for (name, of), points in validation_curves(facts).items()
        if len(points) > 1
    ]
    curve = losses(facts)
    if len(curve) > 1:
        charts.append(section("Loss", html.line_chart(curve, name="steps")))
    return [tag("div", *charts, class_="split")] if charts else []


def run_page(facts: Mapping[str, Any]) -> str:
    validations = validation_lines(facts)
    shown = run_rows(facts) | {"state": page_state(facts)}
    rows = [(name, tag("code", value) if name == "continue with" else value) for name, value in shown.items()]
    parts = [
        html.numbers(main_figures(facts)) if facts["last"] or facts["validations"] else Html(""),
        notes_section(facts),
        *curve_sections(facts),
        section("Run", html.table(("", ""), rows, left=2)),
        section("Validations", html.table(validations[0], validations[1], left=2)) if validations[1] else Html(""),
        section("Checkpoints", html.table(("checkpoint", "state", "size"), checkpoint_lines(facts), left=2))
        if facts["checkpoints"]
        else Html(""),
        section("Last step", html.table(("", ""), last_figures(facts))) if facts["last"] else Html(""),
    ]
    return html.build_page(f"Run {Path(facts['path']).name}", shown["state"], *(part for part in parts if part))


def page_state(facts: Mapping[str, Any]) -> str:
    """Return the state with the time of the clock, for a page that is read later."""
    at = f" at step {facts['step']:,} of {facts['steps']:,}" if facts.get("steps") else ""
    return f"{facts['state']}{at}, {format_time(facts['updated'])}"
