"""Sinks for the metrics of a training: metrics.jsonl, the terminal, status.json."""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from unicl_cli.contracts import Sink
from unicl_cli.errors import LINE_SECONDS, UniclError, escape_control, is_live
from unicl_cli.formats import byte_size, fit_parts, format_duration, format_share
from unicl_cli.storage.files import write_atomic
from unicl_cli.storage.json_lines import MetricLine, read_lines

STATUS_SECONDS = 15
BAR_COLUMNS, SHARE_COLUMNS = 10, 4


def short_share(share: float) -> str:
    """Return a share in whole percent."""
    return format_share(share, 0)


def format_gigabytes(number: float) -> str:
    return byte_size(number * 1e9)


FIELDS: tuple[tuple[str, str, Callable[[float], str]], ...] = (  # key, label, form; what matters most comes first
    ("loss", "loss", "{:.3f}".format),
    ("eta_s", "ETA", format_duration),
    ("img_s", "img/s", "{:,.0f}".format),
    ("lr", "lr", "{:.2g}".format),
    ("grad_norm", "gnorm", "{:.2f}".format),
    ("logit_scale", "scale", "{:.1f}".format),
    ("excess_loss", "excess", "{:.3f}".format),
    ("data_frac", "data", short_share),
    ("mem_gb", "mem", format_gigabytes),
    ("unique_text", "uniq-text", short_share),
    ("label_share", "label", short_share),
    ("padding", "pad", short_share),
)


def line_of(place: str, values: Mapping[str, float], width: int) -> str:
    """Return ``place`` and as many values as fit into one line of ``width`` columns; metrics.jsonl has all of them."""
    shown = [f"{label} {form(values[key])}" for key, label, form in FIELDS if key in values]
    return fit_parts([place, *shown], width, " | ")


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Generator[None]:
    """Turn a failed write (full disk, lost permission) into a UniclError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UniclError(
            f"{path}: cannot be written: {error.strerror}",
            "free some space, then run the same command again to continue from the last checkpoint",
        ) from error


class JsonlSink:
    """One flat JSON object per line; values that are not finite are null. Lines after step ``start`` are dropped first.

    A run that was interrupted after its last checkpoint repeats steps, and no step may be listed twice.
    """

    def __init__(self, path: Path, start: int) -> None:
        if path.exists():
            write_atomic(path, "".join(lines_until(path, start)))
        self.file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        clean = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with explain_write_errors(Path(self.file.name)):
            self.file.write(json.dumps({"step": step, "time": round(time.time(), 3), **clean}) + "\n")
            self.file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the failed flush was already reported
            self.file.close()


def lines_until(path: Path, start: int) -> list[str]:
    """Return the sound lines of steps up to ``start``, the first of each step, with their line breaks."""
    kept: dict[int, str] = {}
    for line in read_lines(path, MetricLine):
        if line.is_complete and line.values["step"] <= start:
            kept.setdefault(line.values["step"], f"{line.text}\n")
    return list(kept.values())


class ConsoleSink:
    """A live bar on a terminal; elsewhere plain lines: the first, the last, and at most one in 30 s between them."""

    def __init__(self, steps: int, start: int, *, quiet: bool = False) -> None:
        self.steps, self.quiet, self.printed = steps, quiet, 0.0
        self.console = Console(stderr=True)
        columns = (BarColumn(BAR_COLUMNS), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
        self.progress = Progress(*columns, console=self.console) if is_live() and not quiet else None
        if self.progress is not None:
            self.progress.start()
            self.task = self.progress.add_task(f"step {start:,}/{steps:,}", total=steps, completed=start)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        place, width = f"step {step:,}/{self.steps:,}", self.console.width
        if self.progress is not None:
            line = line_of(place, values, width - BAR_COLUMNS - SHARE_COLUMNS - 2)  # with a blank after each
            self.progress.update(self.task, completed=step, description=line)
        elif not self.quiet and (time.monotonic() - self.printed > LINE_SECONDS or step == self.steps):
            self.printed = time.monotonic()
            self.say(line_of(f"{place} {format_share(step / self.steps)}", values, width))

    def say(self, message: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self.quiet:
            self.console.print(escape_control(message), highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


class StatusSink:
    """``status.json``: the progress of a run, replaced at most every 15 s and at each change of state."""

    def __init__(self, path: Path, steps: int, world: int) -> None:
        self.path, self.written = path, 0.0
        self.facts: dict[str, Any] = {
            "schema": "unicl/runs/1",
            "state": "running",
            "step": 0,
            "steps": steps,
            "world": world,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def log(self, step: int, values: Mapping[str, float]) -> None:
        named = {"last_loss": values.get("loss"), "img_s": values.get("img_s"), "eta_s": values.get("eta_s")}
        self.facts |= {"step": step, **{k: v for k, v in named.items() if v is not None and math.isfinite(v)}}
        if time.monotonic() - self.written > STATUS_SECONDS:
            self.set_state("running")

    def set_state(self, state: str, **facts: Any) -> None:
        """Write the state ``running | stopped | failed | done`` at once."""
        self.facts |= {"state": state, "updated": round(time.time(), 1), **facts}
        self.written = time.monotonic()
        with explain_write_errors(self.path):
            write_atomic(self.path, json.dumps(self.facts, indent=1))

    def close(self) -> None:
        """Do nothing: the job sets the last state itself."""


class Sinks:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.log(step, values)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
