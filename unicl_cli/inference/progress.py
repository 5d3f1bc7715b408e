"""Progress of a long command on stderr: a live bar on a terminal, else a plain line every 30 s."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unicl_cli.core.dist import rank
from unicl_cli.errors import LINE_SECONDS, escape_control, is_live, is_quiet, write_line
from unicl_cli.formats import format_duration


@contextmanager
def progress(label: str, total: int | None) -> Generator[Callable[[int], None]]:
    """Yield ``advance(more)``. Only the first rank prints, and not under --quiet; ``total`` may be unknown."""
    if rank() > 0 or is_quiet():
        yield lambda more: None
    elif is_live():
        parts = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*parts, console=Console(stderr=True), transient=True) as live:
            task = live.add_task(escape_control(label), total=total)
            yield lambda more: live.advance(task, more)
    else:
        yield PlainProgress(label, total)


class PlainProgress:
    """``label 512/5000 ETA 1m05s``, at most once in 30 s."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self.began = self.printed = time.monotonic()

    def __call__(self, more: int) -> None:
        self.done += more
        now = time.monotonic()
        if now - self.printed < LINE_SECONDS:
            return
        self.printed = now
        if self.total is None:
            write_line(f"{self.label} {self.done:,}")
            return
        left = (now - self.began) / self.done * (self.total - self.done)
        write_line(f"{self.label} {self.done:,}/{self.total:,} ETA {format_duration(left)}")
