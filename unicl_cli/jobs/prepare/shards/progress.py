"""Progress of `prepare` on stderr: a live bar on a terminal, else a plain line every 30 s."""

import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from unicl_cli.errors import LINE_SECONDS, Remark, escape_control, is_live, is_quiet, write_line, write_note
from unicl_cli.formats import byte_size, fit_parts, format_duration, plural

BAR, TIME = 10, 16
"""Columns of the bar and of the time left (`1 day, 10:00:00`); the text takes the rest of the line."""


class Progress:
    """Rows and shards done, images per second, time left and rejected rows.

    ``done`` rows and ``shards_done`` come from an earlier command; the rates count new rows only. Without ``shards``
    only rows are shown.
    """

    def __init__(self, label: str, *, done: int, total: int, shards_done: int, shards: int) -> None:
        self.label, self.first, self.done, self.total = label, done, done, total
        self.shards_done, self.shards, self.bytes = shards_done, shards, 0
        self.started = self.last_line = time.monotonic()
        self.reasons: Counter[str] = Counter()
        self.quiet = is_quiet()
        self.bar = _build_bar() if is_live() and not self.quiet else None

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
            self.bar.add_task(self.label, total=self.total, completed=self.done, left="")
            self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar:
            self._show()
            self.bar.stop()

    def tick(self, rows: int, size: int, rejected: Mapping[str, int]) -> None:
        """Add rows, kept bytes and rejected rows by reason; the numbers are negative after a worker died."""
        self.done += rows
        self.bytes += size
        self.reasons.update(rejected)
        self._show()

    def shard_done(self) -> None:
        """Count one more finished shard."""
        self.shards_done += 1
        self._show()

    def say(self, line: str) -> None:
        """Show a line about something that went wrong, even under --quiet."""
        if self.bar:
            self.bar.console.print(escape_control(line), markup=False, highlight=False)
        else:
            write_note(line)

    def _show(self) -> None:
        seconds = max(time.monotonic() - self.started, 1e-3)
        rate = (self.done - self.first) / seconds
        shards = (
            [f"{self.shards_done:,}/{self.shards:,} {plural(self.shards, 'shard', 'shards')}"] if self.shards else []
        )
        speed = f"{rate:,.0f} img/s"
        if self.bar:
            rejected = [f"{self.reasons.total():,} left out"] if +self.reasons else []
            parts = [f"{self.label} {self.done:,}/{self.total:,}", *rejected, speed, *shards]
            room = self.bar.console.width - BAR - TIME - 2  # with a blank after each column
            left = timedelta(seconds=int((self.total - self.done) / rate)) if rate > 0 else "-:--:--"
            text = fit_parts(parts, room, ", ")
            self.bar.update(self.bar.task_ids[0], completed=self.done, description=text, left=str(left))
        elif not self.quiet and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            left = f", {format_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
            facts = ", ".join([*shards, speed, f"{byte_size(self.bytes / seconds)}/s"])
            rejected = f"; left out: {format_counts(self.reasons)}" if +self.reasons else ""
            write_line(f"{self.label}: {self.done:,} of {self.total:,} rows, {facts}{left}{rejected}")


def _build_bar() -> Any:
    from rich.console import Console  # not by workers, which show none
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        BarColumn(bar_width=BAR),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[left]}"),
    )
    return Progress(*columns, console=Console(stderr=True))


def note(line: str) -> None:
    """Write a note on the work to stderr, unless --quiet was given."""
    if not is_quiet():
        write_note(line)


def warn(line: str) -> None:
    """Write a note on data to stderr. --quiet leaves out a `Remark` alone: wrong data makes a wrong corpus."""
    if not (is_quiet() and isinstance(line, Remark)):
        write_note(line)


def format_counts(reasons: Mapping[str, int]) -> str:
    """Return ``"missing_file 3, truncated 1"``."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()) if count > 0)
