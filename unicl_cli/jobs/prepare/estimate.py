"""`prepare --dry-run`: what a corpus would hold and cost, from a sample of its images; writes nothing."""

import json
import resource
import shutil
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.core.byte_size import decimal_size
from unicl_cli.core.machine import cores
from unicl_cli.data.sources.resolve import named_sources
from unicl_cli.errors import UniclError, plain
from unicl_cli.jobs.prepare.plan import Opened, Plan, differences, make_plan
from unicl_cli.jobs.prepare.prepare import PLAN, Wanted, check_place, read_plan
from unicl_cli.jobs.prepare.progress import listed, note
from unicl_cli.jobs.prepare.report import columns
from unicl_cli.jobs.prepare.shards import DECODERS, THREADS, Prepared, Rejected, Unit, Work, prepare_row

SAMPLE = 128
"""Rows of each source and split that are read and decoded."""
ROOM = 1.2
"""Less free space than this, times the expected size, is refused."""
_Z95 = 1.96
_WORKER = 130_000_000
"""Of memory, for a process that has loaded Arrow and Pillow (measured: 115 to 130 MB)."""


class Sampled(NamedTuple):
    """``n`` of ``rows`` rows were tried in ``seconds``; ``size`` bytes are kept, ``pixels`` has the largest image."""

    source: str
    kind: str
    split: str
    rows: int
    n: int
    kept: int
    rejected: dict[str, int]
    size: int
    pixels: int
    seconds: float

    def expected(self) -> tuple[float, float, float]:
        """Rows that will be kept, with the 95 % bounds of Wilson's interval."""
        share, z2 = self.kept / self.n, _Z95**2
        middle = (share + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = _Z95 * sqrt(share * (1 - share) / self.n + z2 / (4 * self.n**2)) / (1 + z2 / self.n)
        if self.n == self.rows:
            return float(self.kept), float(self.kept), float(self.kept)
        return self.rows * share, self.rows * max(0.0, middle - half), self.rows * min(1.0, middle + half)

    def bytes_of(self, rows: float) -> float:
        return rows * self.size / self.kept if self.kept else 0.0


def run(wanted: Wanted, *, workers: int | None, as_json: bool) -> None:
    """Write the estimate to stdout. UniclError if the plan could not be carried out, for lack of space too."""
    named = named_sources(wanted.labels, wanted.captions, wanted.images)
    if not named:
        raise UniclError("nothing to prepare", "give at least one --labels, --captions or --images SRC")
    check_place(wanted.out)
    plan = make_plan(named, wanted.options)
    for line in plan.notes:
        note(line)
    if (wanted.out / PLAN).is_file() and (changed := differences(read_plan(wanted.out), plan.document())):
        raise UniclError(f"{wanted.out} was begun with another plan; {'; '.join(changed)}", "choose another -o")
    samples = [_sampled(plan, opened, split, wanted.out) for opened in plan.sources for split in opened.rows]
    report = _report(wanted.out, plan, samples, workers or cores())
    text = [json.dumps(report, ensure_ascii=False)] if as_json else list(map(plain, _lines(report)))
    sys.stdout.write("\n".join(text) + "\n")
    if report["bytes_expected"][1] * ROOM > report["free"]:
        raise UniclError(
            f"{wanted.out}: {decimal_size(report['free'])} are free, {ROOM} times the expected size would be "
            f"{decimal_size(report['bytes_expected'][1] * ROOM)}",
            "make room, give -o another disk, shrink images with --size, or take fewer with --limit",
        )


def _sampled(plan: Plan, opened: Opened, split: str, out: Path) -> Sampled:
    rows = opened.rows[split]
    n = min(SAMPLE, len(rows))
    name, kind = opened.named.name, opened.named.kind
    unit = Unit(f"{name}-{kind}", split, name, kind, 0, n, n)
    work = Work(
        unit, out, opened.named.src, [], plan.options.size, plan.options.text == "raw", {}, plan.options.min_side
    )
    chosen = [rows[at * len(rows) // n] for at in range(n)]
    decoders = threading.Semaphore(DECODERS)
    begun = time.monotonic()
    with ThreadPoolExecutor(THREADS) as threads:
        results = list(threads.map(partial(prepare_row, source=opened.source, work=work, decoders=decoders), chosen))
    seconds = time.monotonic() - begun
    kept = [result.record for result in results if isinstance(result, Prepared)]
    return Sampled(
        name,
        kind,
        split,
        len(rows),
        n,
        len(kept),
        dict(sorted(Counter(result.reason for result in results if isinstance(result, Rejected)).items())),
        sum(len(record["image"]["bytes"]) for record in kept),
        max((record["width"] * record["height"] for record in kept), default=0),
        seconds,
    )


def _report(out: Path, plan: Plan, samples: list[Sampled], workers: int) -> dict[str, Any]:
    sources: list[dict[str, Any]] = [
        {
            **{name: getattr(sample, name) for name in ("source", "kind", "split", "rows", "rejected")},
            "sampled": sample.n,
            "rows_expected": [round(rows) for rows in sample.expected()],
            "bytes_expected": round(sample.bytes_of(sample.expected()[0])),
        }
        for sample in samples
    ]
    upper = sum(sample.bytes_of(sample.expected()[2]) for sample in samples)
    largest = max(sample.pixels for sample in samples)
    return {
        "schema": "unicl/prepare/1",
        "corpus": str(out),
        "dry_run": True,
        "rows": sum(sample.rows for sample in samples),
        "rows_expected": [round(sum(column)) for column in zip(*(s.expected() for s in samples), strict=True)],
        "bytes_expected": [sum(source["bytes_expected"] for source in sources), round(upper)],
        "seconds": round(sum(sample.rows * sample.seconds / sample.n for sample in samples) / min(workers, cores())),
        "memory": _memory(workers, largest, samples),
        "free": _free(out),
        "workers": workers,
        "classes": len(plan.classes),
        "sources": sources,
        "notes": plan.notes,
    }


def _memory(workers: int, pixels: int, samples: list[Sampled]) -> int:
    """This process as it is, and for each worker: libraries, a row group four times over, and decoded images.

    A group of 8 MB (or four images, if those are more) is there as records, as Arrow, as pages and in the writer.
    An image is there decoded and once converted: 7 bytes a pixel.
    """
    mean = max((sample.bytes_of(1) for sample in samples if sample.kept), default=0.0)
    worker = _WORKER + 4 * max(8e6, 4 * mean) + DECODERS * 7 * pixels
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak + worker * workers)


def _free(out: Path) -> int:
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _lines(report: dict[str, Any]) -> list[str]:
    cells = [("source", "kind", "split", "rows", "kept, about", "left out of the sample", "size, about")]
    for line in report["sources"]:
        kept, low, high = line["rows_expected"]
        bounds = f"{kept:,} ({low:,} to {high:,})" if low != high else f"{kept:,}"
        left_out = f"{listed(line['rejected']) or '0'} of {line['sampled']}"
        size = decimal_size(line["bytes_expected"])
        cells.append((line["source"], line["kind"], line["split"], f"{line['rows']:,}", bounds, left_out, size))
    minutes = f"{report['seconds'] / 60:.0f} minutes" if report["seconds"] >= 120 else f"{report['seconds']} s"
    return [
        *columns(cells),
        f"{report['corpus']}: about {report['rows_expected'][0]:,} of {report['rows']:,} rows, "
        f"{decimal_size(report['bytes_expected'][0])} ({decimal_size(report['free'])} are free), "
        f"{report['classes']:,} classes; {minutes} and {decimal_size(report['memory'])} of memory with "
        f"{report['workers']} workers; nothing was written",
    ]
