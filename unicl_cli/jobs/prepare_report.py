"""What `prepare` tells people: notes and progress on stderr, the closing table on stdout."""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from unicl_cli.contracts import ClassName
from unicl_cli.data.runner import Marker

PLAIN_SECONDS = 30.0
"""Off a terminal, a line at most this often."""
_HEADER = ("source", "kind", "split", "rows", "rejected", "size", "classes", "short side")


class Progress:
    """Rows done, rate, time left and reasons: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, done: int, total: int) -> None:
        self.first, self.done, self.total = done, done, total
        self.started = self.said = time.monotonic()
        self.reasons: Counter[str] = Counter()
        console = Console(stderr=True)
        self.quiet = not logging.getLogger("unicl_cli").isEnabledFor(logging.INFO)
        live = not self.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.bar = (
            Bar(
                TextColumn("prepare"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[reasons]}"),
                console=console,
            )
            if live
            else None
        )

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
            self.bar.add_task("prepare", total=self.total, completed=self.done, rate="", reasons="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def tick(self, rows: int) -> None:
        """``rows`` more are done."""
        self.done = min(self.total, self.done + rows)
        self._show()

    def rejects(self, reasons: dict[str, int]) -> None:
        """A shard is done; these were left out."""
        self.reasons.update(reasons)
        self._show()

    def _show(self) -> None:
        seconds = max(time.monotonic() - self.started, 1e-3)
        rate = (self.done - self.first) / seconds
        if self.bar:
            self.bar.update(
                self.bar.task_ids[0], completed=self.done, rate=f"{rate:.0f}/s", reasons=_reasons(self.reasons)
            )
        elif not self.quiet and time.monotonic() - self.said >= PLAIN_SECONDS:
            self.said = time.monotonic()
            left = (self.total - self.done) / rate if rate else 0
            reasons = _reasons(self.reasons)
            note(f"{self.done:,} of {self.total:,} rows, {rate:.0f}/s, {left:.0f} s left {reasons}".rstrip())


def note(line: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def summary(out: Path, classes: Sequence[ClassName], markers: Sequence[Marker], notes: Sequence[str]) -> dict[str, Any]:
    """The facts of the closing table as `--json` prints them."""
    groups: dict[tuple[str, str, str], list[Marker]] = {}
    for marker in markers:
        groups.setdefault((marker["source"], marker["kind"], marker["split"]), []).append(marker)
    sources = [_line(key, of) for key, of in groups.items()]
    rejected: Counter[str] = Counter()
    for line in sources:
        rejected.update(line["rejected"])
    return {
        "schema": "unicl/prepare/1",
        "corpus": str(out),
        "rows": sum(line["rows"] for line in sources),
        "rejected": dict(sorted(rejected.items())),
        "bytes": sum(line["bytes"] for line in sources),
        "payload": sum(marker["payload"] for marker in markers),
        "payload_at_256": sum(marker["payload_at_256"] for marker in markers),
        "shards": sum(1 for marker in markers if marker["rows"]),
        "classes": len(classes),
        "sources": sources,
        "notes": list(notes),
    }


def write_report(report: dict[str, Any], *, as_json: bool) -> None:
    """The result, on stdout."""
    lines = [json.dumps(report, ensure_ascii=False)] if as_json else _table(report)
    sys.stdout.write("\n".join(lines) + "\n")


def _line(key: tuple[str, str, str], markers: list[Marker]) -> dict[str, Any]:
    rejected: Counter[str] = Counter()
    for marker in markers:
        rejected.update(marker["rejected"])
    sides = [marker["short_side"] for marker in markers if marker["rows"]]
    return {
        "source": key[0],
        "kind": key[1],
        "split": key[2],
        "rows": sum(m["rows"] for m in markers),
        "rejected": dict(sorted(rejected.items())),
        "bytes": sum(m["bytes"] for m in markers),
        "classes": len({label for m in markers for label in m["labels"]}),
        "texts": sum(m["texts"] for m in markers),
        "animated": sum(m["animated"] for m in markers),
        "short_side": [min((s[0] for s in sides), default=0), max((s[1] for s in sides), default=0)],
    }


def _table(report: dict[str, Any]) -> list[str]:
    cells: list[tuple[str, ...]] = [_HEADER]
    for line in report["sources"]:
        low, high = line["short_side"]
        cells.append(
            (
                line["source"],
                line["kind"],
                line["split"],
                f"{line['rows']:,}",
                _reasons(line["rejected"]) or "0",
                size_of(line["bytes"]),
                str(line["classes"] or "-"),
                f"{low}-{high} px" if low != high else f"{low} px",
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    left_out = sum(report["rejected"].values())
    end = f"{report['corpus']}: {report['rows']:,} rows, {report['classes']} classes, {size_of(report['bytes'])}"
    lines.append(end + (f"; {left_out:,} left out, see {report['corpus']}/rejects" if left_out else ""))
    if report["payload_at_256"] < 0.8 * report["payload"]:
        lines.append(f"--size 256 would store about {size_of(report['payload_at_256'])} instead")
    return lines


def _reasons(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))


def size_of(count: int) -> str:
    """Bytes for people, decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
