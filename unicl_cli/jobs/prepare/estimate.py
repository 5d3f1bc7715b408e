"""The `prepare --dry-run` job: an estimate of a corpus from a sample of its images, without writing anything."""

import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.core.machine import cores
from unicl_cli.data.manifest import PLAN
from unicl_cli.data.pictures import MAX_PIXELS
from unicl_cli.errors import Remark, UniclError, print_line
from unicl_cli.formats import byte_size, count_of
from unicl_cli.jobs.prepare.plan.classes import describe_examples, format_examples
from unicl_cli.jobs.prepare.plan.plan import CorpusPlan, PlannedSource, make_plan
from unicl_cli.jobs.prepare.plan.request import PrepareRequest
from unicl_cli.jobs.prepare.plan_file import check_out_dir, check_same_plan, read_plan
from unicl_cli.jobs.prepare.set_report import describe_sets, format_sets
from unicl_cli.jobs.prepare.shards.download import map_ahead
from unicl_cli.jobs.prepare.shards.prepared_row import PreparedRow, Rejected
from unicl_cli.jobs.prepare.shards.progress import format_counts, warn
from unicl_cli.jobs.prepare.shards.shards import DECODERS, RowTools, prepare_row
from unicl_cli.jobs.prepare.shards.signatures import bytes_per_row
from unicl_cli.jobs.prepare.shards.staged import measure_staged
from unicl_cli.jobs.prepare.shards.units import Unit
from unicl_cli.pages.text import align_columns
from unicl_cli.storage.json_output import print_json
from unicl_cli.storage.remote import RemotePath

SAMPLE = 128
"""Rows of each source and split to read and decode."""
ROOM = 1.2
"""Free space that must be there, as a multiple of the expected size."""
_Z95 = 1.96
_WORKER = 130_000_000
"""Memory of a process that has loaded Arrow and Pillow, in bytes (measured: 115 to 130 MB)."""


class SourceSample(NamedTuple):
    """``n`` of ``rows`` rows, tried in ``seconds``: ``kept`` of them, in ``size`` bytes; ``pixels`` of the largest.

    ``cpu`` are the CPU seconds of all threads in that time. ``staged`` are the bytes of the rows as downloads that
    wait until all are compared; 0 for rows that do not.
    """

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
    cpu: float
    staged: int = 0

    def expected(self) -> tuple[float, float, float]:
        """Return the rows that will be kept, with the 95 % bounds of Wilson's interval."""
        share, z2 = self.kept / self.n, _Z95**2
        middle = (share + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = _Z95 * sqrt(share * (1 - share) / self.n + z2 / (4 * self.n**2)) / (1 + z2 / self.n)
        if self.n == self.rows:
            return float(self.kept), float(self.kept), float(self.kept)
        return self.rows * share, self.rows * max(0.0, middle - half), self.rows * min(1.0, middle + half)

    def bytes_of(self, rows: float) -> float:
        """Return the size of so many kept rows."""
        return rows * self.size / self.kept if self.kept else 0.0

    def most_staged(self) -> float:
        """Return the size of all rows while they wait, by the upper bound."""
        return self.staged * (self.expected()[2] / self.kept if self.kept else self.rows / self.n)


def run(request: PrepareRequest, *, workers: int | None, as_json: bool) -> None:
    """Write the estimate to stdout. UniclError if `prepare` would fail, or if the disk lacks space."""
    out = request.out
    sources = request.sources()
    check_out_dir(out)
    plan = make_plan(sources, request.options, out, compare=(out / PLAN).is_file(), downloads=request.downloads)
    for line in plan.notes:
        warn(line)
    if plan.options.dedup != "off" or plan.others:
        warn(Remark("preview: rows that --dedup and --not-in leave out are not searched for, so fewer may remain"))
    if (out / PLAN).is_file():
        check_same_plan(out, read_plan(out), plan.document())
    samples = [_sample_rows(plan, planned, split, out) for planned in plan.sources for split in planned.rows]
    report = _build_report(out, plan, samples, workers or cores())
    if as_json:
        print_json(report)
    else:
        for line in _format_report(report):
            print_line(line)
    needed = report["bytes_at_once"] * ROOM
    if report["free"] is not None and needed > report["free"]:
        waiting = " with the downloads that wait for --dedup" if report["bytes_staged"] else ""
        raise UniclError(
            f"{out}: not enough disk space: {byte_size(report['free'])} free, "
            f"{byte_size(needed)} needed ({ROOM} times the expected size{waiting})",
            "free some space, choose another disk with -o, or reduce the corpus with --size or --limit",
        )


def _sample_rows(plan: CorpusPlan, planned: PlannedSource, split: str, out: Path) -> SourceSample:
    rows = planned.rows[split]
    n = min(SAMPLE, len(rows))
    name, kind = planned.spec.name, planned.spec.kind
    work = plan.work(Unit(f"{name}-{kind}", split, name, kind, 0, n, n), out)
    waits = work.compared
    work = work._replace(
        not_in=False, compared=False
    )  # images of other corpora are not read, duplicates not searched for
    chosen = [rows[at * len(rows) // n] for at in range(n)]
    tools = RowTools(planned.source, work)
    prepare, per_host = partial(prepare_row, tools=tools), work.per_host
    started, cpu = time.monotonic(), time.process_time()
    found = map_ahead(prepare, chosen, threads=tools.threads, ahead=SAMPLE, host=tools.host_of, per_host=per_host)
    results = list(found)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    kept = [result for result in results if isinstance(result, PreparedRow)]
    return SourceSample(
        name,
        kind,
        split,
        len(rows),
        n,
        len(kept),
        dict(sorted(Counter(result.reason for result in results if isinstance(result, Rejected)).items())),
        sum(row.stored_bytes for row in kept),
        max((row.record["width"] * row.record["height"] for row in kept), default=0),
        seconds,
        cpu,
        measure_staged(results) if waits else 0,
    )


def _build_report(out: Path, plan: CorpusPlan, samples: list[SourceSample], workers: int) -> dict[str, Any]:
    sources: list[dict[str, Any]] = [
        {
            **{name: getattr(sample, name) for name in ("source", "kind", "split", "rows", "rejected")},
            "sampled": sample.n,
            "rows_expected": [round(rows) for rows in sample.expected()],
            "bytes_expected": round(sample.bytes_of(sample.expected()[0])),
        }
        for sample in samples
    ]
    upper = round(sum(sample.bytes_of(sample.expected()[2]) for sample in samples))
    staging = _estimate_staging(plan, samples)
    largest = max(sample.pixels for sample in samples)
    return {
        "schema": "unicl/prepare/1",
        "corpus": str(out),
        "dry_run": True,
        "rows": sum(sample.rows for sample in samples),
        "rows_expected": [round(sum(column)) for column in zip(*(s.expected() for s in samples), strict=True)],
        "bytes_expected": [sum(source["bytes_expected"] for source in sources), upper],
        "bytes_staged": staging,
        "bytes_at_once": upper + (_estimate_copies(plan, samples, workers, staging) if staging else 0),
        "seconds": round(sum(_estimate_seconds(sample, workers, cores()) for sample in samples)),
        "memory": _estimate_memory(workers, largest, samples),
        "free": _free_bytes(out),
        "workers": workers,
        "classes": len(plan.classes),
        "class_examples": describe_examples(plan.images.examples),
        **describe_sets(plan.groups, plan.count_set_sizes() if plan.groups is not None else {}),
        "sources": sources,
        "notes": plan.notes,
    }


def _estimate_staging(plan: CorpusPlan, samples: Sequence[SourceSample]) -> int:
    """Estimate the most bytes of downloads that wait for `--dedup`, with the digests; 0 without such."""
    if not any(sample.staged for sample in samples):
        return 0
    per_row = bytes_per_row(near=plan.options.dedup == "near")
    return round(sum(sample.most_staged() + per_row * sample.rows for sample in samples))


def _estimate_copies(plan: CorpusPlan, samples: Sequence[SourceSample], workers: int, staging: int) -> int:
    """Estimate the peak bytes besides those of the corpus: a download is deleted once its whole shard is there."""
    rows = Counter[tuple[str, str]]()  # of the largest shard
    units = plan.units()
    for unit in units:
        rows[unit.source, unit.split] = max(rows[unit.source, unit.split], unit.rows)
    waiting = [sample for sample in samples if sample.staged]
    stored = sum(sample.bytes_of(sample.expected()[2]) for sample in waiting)
    shard = max(sample.bytes_of(rows[sample.source, sample.split]) for sample in waiting)
    at_once = min(workers, len(units), plan.downloads.per_host)
    return round(staging - stored + min(stored, shard * at_once))


def _estimate_seconds(sample: SourceSample, workers: int, cores: int) -> float:
    """Estimate the time of a source: workers wait for files and servers at once, but compute only on so many cores.

    The threads of the sample have already computed at the same time, which its CPU seconds count one by one.
    """
    return sample.rows / sample.n * max(sample.seconds / workers, sample.cpu / min(workers, cores))


def _estimate_memory(workers: int, pixels: int, samples: list[SourceSample]) -> int:
    """Estimate the peak memory: this process now, and for each worker its libraries, a row group and decoded images.

    A row group of 8 MB (or of four larger images) is held four times: as records, as Arrow, as pages and by the
    writer. A decoded image is held with its conversion: 7 bytes per pixel. A larger one than MAX_PIXELS is held alone.
    """
    mean = max((sample.bytes_of(1) for sample in samples if sample.kept), default=0.0)
    decoded = DECODERS * 7 * min(pixels, MAX_PIXELS) + (4 * pixels if pixels > MAX_PIXELS else 0)
    worker = _WORKER + 4 * max(8e6, 4 * mean) + decoded
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak + worker * workers)


def _free_bytes(out: Path) -> int | None:
    """Return the free space of the disk; None for another file system, which does not say."""
    if isinstance(out, RemotePath):
        return None
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _format_report(report: dict[str, Any]) -> list[str]:
    cells = [("source", "kind", "split", "rows", "expected", "rejected in sample", "size")]
    reasons: Counter[str] = Counter()
    for line in report["sources"]:
        kept, low, high = line["rows_expected"]
        bounds = f"{kept:,} ({low:,} to {high:,})" if low != high else f"{kept:,}"
        rejected = f"{sum(line['rejected'].values()):,} of {line['sampled']:,}"
        reasons.update(line["rejected"])
        size = byte_size(line["bytes_expected"])
        cells.append((line["source"], line["kind"], line["split"], f"{line['rows']:,}", bounds, rejected, size))
    seconds, staged = report["seconds"], report["bytes_staged"]
    free = f" ({byte_size(report['free'])} free)" if report["free"] is not None else ""
    duration = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{max(1, seconds)} s"
    return [
        *align_columns(cells),
        *format_examples(report),
        *format_sets(report),
        *([f"rejected in sample: {format_counts(reasons)}"] if reasons else []),
        f"{report['corpus']}: about {report['rows_expected'][0]:,} of {count_of(report['rows'], 'row')}, "
        f"{count_of(report['classes'], 'class')}, {byte_size(report['bytes_expected'][0])}{free}",
        *(
            [
                f"--dedup keeps downloads on the disk until their shards are written: up to {byte_size(staged)}, "
                f"and about {byte_size(report['bytes_at_once'])} with the shards"
            ]
            if staged
            else []
        ),
        f"about {duration} and {byte_size(report['memory'])} of memory with "
        f"{count_of(report['workers'], 'worker')}; nothing was written",
    ]
