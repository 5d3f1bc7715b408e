"""Run directories as text for the terminal: a table of many, a summary of one."""

import itertools
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.formats import format_age, format_duration, format_figure, format_figures, label_figure, percent
from unicl_cli.pages.text import align_columns, terminal_width
from unicl_cli.runs.documents import Environment, read_if_sound
from unicl_cli.runs.folder import ENVIRONMENT
from unicl_cli.runs.status import read_metrics, read_validations
from unicl_cli.runs.validations import name_rows

MOST_LOSS = 1e30
"""Larger losses are left out of the curve, whose sums would overflow."""
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-:=+*#"
HEAD = ("name", "state", "step", "%", "ETA", "img/s", "loss", "best", "devices", "age")


# -- text ---------------------------------------------------------------------------------------------------------


def table_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table with one line per run, in aligned columns."""
    if not found:
        yield "no runs here: train one with unicl train RECIPE"
        return
    yield from align_columns([HEAD, *(cells(run) for run in found)])
    for run in found:
        if "reason" in run and run["state"] != "model":  # a model without a training is no fault
            yield run["reason"]


def cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one line of the table, in the order of ``HEAD``."""

    def shown(key: str, form: str) -> str:
        value = run.get(key)
        return form.format(value) if isinstance(value, int | float) else "-"

    steps = run.get("steps")
    share = percent(run["step"] / steps, 0) if steps else "-"
    metric, best = run.get("best_metric"), run.get("best")
    figure = f"{label_figure(metric)} {format_figure(metric, best)}" if metric and best is not None else "-"
    eta = (
        format_duration(run["eta_s"])
        if run["state"] == "running" and isinstance(run.get("eta_s"), int | float)
        else "-"
    )
    return (
        *(Path(run["run"]).name, run["state"], f"{run['step']:,}/{steps:,}" if steps else "-", share, eta),
        *(shown("img_s", "{:,.0f}"), shown("last_loss", "{:.3f}")),
        *(figure, shown("world", "{}"), format_age(run["age_s"])),
    )


def describe_run(run: Path, status: Mapping[str, Any]) -> Iterator[str]:
    """Yield a run in a few lines: state, loss curve, validations, what to do next."""
    step, steps = status["step"], status["steps"]
    old = format_age(max(0.0, time.time() - status["updated"]))
    yield f"{run}: {status['state']} at step {step:,} of {steps:,}, {old} ago on {status.get('host', '?')}"
    losses = [row["loss"] for row in read_metrics(run) if row.get("loss") is not None and abs(row["loss"]) < MOST_LOSS]
    if losses:
        yield f"loss  {losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}"
    rows = read_validations(run)
    yield from align_columns(
        [validation_cells(row, name) for row, name in zip(rows, name_rows(rows), strict=True)], terminal_width()
    )
    if status["state"] == "done":
        yield f"next: unicl eval {shlex.quote(str(run))}"
    elif status["state"] != "running":
        yield f"to continue: {command_of(run)}"


def validation_cells(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Return the step of a validation, and its data and metrics in a line."""
    return f"step {row['step']:,}", f"{name}: {format_figures(row)}"


def command_of(run: Path) -> str:
    """Return the command line that started the run, with `cd` if it was started in another folder."""
    env = read_if_sound(run / ENVIRONMENT, Environment)
    if env is None or env.command is None:
        return f"the unicl train command of {run} (its env.json cannot be read)"
    command, folder = shlex.join(["unicl", *env.command[1:]]), env.cwd or str(Path.cwd())
    return command if Path(folder) == Path.cwd() else f"cd {shlex.quote(folder)} && {command}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return the curve in one line: the means of ``width`` equal parts, scaled so that the largest has full height."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    bars = BARS if encoding.startswith("utf") else ASCII_BARS
    width = min(width, len(values))
    edges = [round(n * len(values) / width) for n in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(bars[round((mean - low) / ((high - low) or 1) * (len(bars) - 1))] for mean in means)
