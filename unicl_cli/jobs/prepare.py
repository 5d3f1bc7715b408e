"""`prepare`: sources in, corpus out; goes on where it was stopped."""

import errno
import json
import os
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from unicl_cli.core.files import write_atomic
from unicl_cli.data.corpus import MANIFEST, PLAN, damage, fold_manifest
from unicl_cli.data.plan import Options, Plan, differences, make_plan
from unicl_cli.data.runner import Marker, run_here, run_pool
from unicl_cli.data.shards import Unit, json_bytes
from unicl_cli.data.sources.resolve import named_sources
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.jobs.prepare_report import Progress, note, summary, write_report

LOCK = ".lock"
_OURS = frozenset((MANIFEST, PLAN, LOCK, "data", "parts", "rejects"))
_FEW_ROWS = 5000
_SMALL_GROUP = 512
"""A group holds about 8 MB: with this many rows in it, pictures are small, and few of them are not worth a pool."""


class Wanted(NamedTuple):
    """The options of the command."""

    labels: tuple[str, ...]
    captions: tuple[str, ...]
    images: tuple[str, ...]
    out: Path
    templates: str | None = None
    size: int | None = None
    holdout: float | None = None
    shard_mb: int = 256
    limit: int | None = None
    text: str = "clean"


def run(wanted: Wanted, *, workers: int | None, allow_version_mix: bool, as_json: bool, again: str) -> None:
    """Prepare, then write the closing table (or JSON document) to stdout. ``again`` is the command that continues."""
    with _stop_flag() as stopped:
        report = prepare(wanted, workers=workers, allow_version_mix=allow_version_mix, stopped=stopped, again=again)
    write_report(report, as_json=as_json)


def prepare(
    wanted: Wanted,
    *,
    workers: int | None = None,
    allow_version_mix: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    again: str = "the same command",
) -> dict[str, Any]:
    """Make or finish the corpus in ``wanted.out``; gives the document of ``--json``. Raises Stopped when stopped."""
    if wanted.text not in ("clean", "raw"):
        raise UniclError(f"--text {wanted.text}: is clean or raw")
    named = named_sources(wanted.labels, wanted.captions, wanted.images)
    if not named:
        raise UniclError("nothing to prepare", "give at least one --labels, --captions or --images SRC")
    options = Options(wanted.templates, wanted.size, wanted.holdout, wanted.shard_mb, wanted.limit, wanted.text)
    out = wanted.out
    _check_place(out)
    with _locked(out):
        plan = make_plan(named, options)
        for line in plan.notes:
            note(line)
        document, units = _agreed(plan, out, allow_version_mix=allow_version_mix)
        for left in out.rglob("*.tmp"):
            left.unlink(missing_ok=True)
        markers = _markers(out, units)
        todo = [unit for unit in units if unit.marker not in markers]
        if not todo and (out / MANIFEST).is_file():
            note(f"{out} is complete: nothing to do")
        else:
            (out / MANIFEST).unlink(missing_ok=True)
            _do(plan, todo, out, workers or _cores(), stopped, markers)
        ordered = [markers[unit.marker] for unit in units if unit.marker in markers]
        if len(ordered) < len(units):
            raise Stopped(
                f"stopped: {len(ordered)} of {len(units)} shards of {out} are written", f"go on with: {again}"
            )
        return _finished(plan, document, ordered, out)


def _finished(plan: Plan, document: dict[str, Any], markers: list[Marker], out: Path) -> dict[str, Any]:
    report = summary(out, plan.classes, markers, plan.notes)
    if not report["rows"]:
        (out / PLAN).unlink(missing_ok=True)  # nothing is kept, so the next attempt may bring another plan
        for marker in out.glob("parts/*.json"):
            marker.unlink()
        reasons = ", ".join(f"{reason} {count}" for reason, count in report["rejected"].items())
        raise UniclError(f"no row was left of {sum(report['rejected'].values())}: {reasons}", f"see {out / 'rejects'}")
    name = out.resolve().name
    manifest = json_bytes(fold_manifest(name, document, plan.classes, markers))
    if not (out / MANIFEST).is_file():
        write_atomic(out / MANIFEST, manifest)
    return report


def _check_place(out: Path) -> None:
    """Never write into a directory that holds something else."""
    if out.exists() and not out.is_dir():
        raise UniclError(f"{out}: is a file", "choose another directory with -o")
    foreign = sorted({item.name for item in out.iterdir()} - _OURS) if out.is_dir() else []
    if foreign and not (out / PLAN).is_file():
        raise UniclError(f"{out}: holds something else ({foreign[0]})", "choose an empty or a new directory with -o")


@contextmanager
def _locked(out: Path) -> Generator[None, None, None]:
    lock = FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UniclError(f"{out}: another prepare is writing there", "wait for it, or choose another -o") from error
    except OSError as error:
        raise UniclError(f"{out}: cannot be written: {error.strerror}", "choose another directory with -o") from error
    try:
        yield
    finally:
        lock.release()


def _agreed(plan: Plan, out: Path, *, allow_version_mix: bool) -> tuple[dict[str, Any], list[Unit]]:
    """The document and units of `plan.json`, which is written if there is none. UniclError if it is another plan."""
    new = plan.document()
    file = out / PLAN
    if not file.is_file():
        units = plan.units()
        new["units"] = [unit._asdict() for unit in units]
        write_atomic(file, json_bytes(new))
        return new, units
    old: dict[str, Any] = json.loads(file.read_bytes())
    if changed := differences(old, new):
        raise UniclError(
            f"{out} was begun with another plan; {'; '.join(changed)}", f"choose another -o, or remove {out}"
        )
    if old["versions"] != new["versions"] and not allow_version_mix and not (out / MANIFEST).is_file():
        raise UniclError(
            f"{out} was begun with other versions: {old['versions']}, now {new['versions']}",
            "shards would not be byte-identical: --allow-version-mix goes on, or choose another -o",
        )
    return old, [Unit(**unit) for unit in old["units"]]


def _markers(out: Path, units: Sequence[Unit]) -> dict[str, Marker]:
    """Markers of the units that are done: there, readable, and with a shard of the right size."""
    found: dict[str, Marker] = {}
    for unit in units:
        with suppress(FileNotFoundError, ValueError):
            marker = json.loads((out / unit.marker).read_bytes())
            problem = damage(out, marker) if marker["rows"] else None
            if problem:
                note(f"{problem}: it is made again")
            else:
                found[unit.marker] = marker
    return found


def _do(
    plan: Plan, todo: list[Unit], out: Path, workers: int, stopped: Callable[[], bool], markers: dict[str, Marker]
) -> None:
    """Run the units and put their markers into ``markers``."""
    done = sum(marker["rows"] + sum(marker["rejected"].values()) for marker in markers.values())
    rows = sum(unit.rows for unit in todo)
    if markers:
        note(f"{len(markers)} of {len(markers) + len(todo)} shards are there already")
    few = rows <= _FEW_ROWS and all(unit.group_rows >= _SMALL_GROUP for unit in todo)
    with Progress(done, done + rows) as progress:
        if workers == 1 or len(todo) == 1 or few:
            results = run_here(
                todo,
                lambda unit: plan.work(unit, out),
                lambda name: plan.opened(name).source,
                tick=progress.tick,
                stopped=stopped,
            )
        else:
            workers = min(workers, len(todo))
            results = run_pool(todo, lambda unit: plan.work(unit, out), workers, tick=progress.tick, stopped=stopped)
        try:
            for marker in results:
                markers[f"parts/{marker['split']}.{Path(marker['file']).stem}.json"] = marker
                progress.rejects(marker["rejected"])
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UniclError(f"{out}: {error.strerror}", "make room: the same command goes on from here") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _stop_flag() -> Generator[Callable[[], bool], None, None]:
    """A function that says whether SIGINT or SIGTERM came; a second one ends the process at once."""
    caught: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)
        note("stopping: shards that are not finished are dropped")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
