"""`prepare`: sources in, corpus out; goes on where it was stopped."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.core.files import write_atomic
from unicl_cli.core.machine import cores
from unicl_cli.data.corpus import MANIFEST, PLAN, damage
from unicl_cli.data.sources.resolve import name_sources
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.jobs.prepare import duplicates
from unicl_cli.jobs.prepare.duplicates import Duplicates
from unicl_cli.jobs.prepare.engines.local import Job, Marker, run_here, run_pool
from unicl_cli.jobs.prepare.lock import LOCK, Stop, remove_unfinished, writing_into
from unicl_cli.jobs.prepare.manifest import fold_manifest
from unicl_cli.jobs.prepare.plan import Options, CorpusPlan, list_differences, make_plan
from unicl_cli.jobs.prepare.progress import Progress, format_counts, note
from unicl_cli.jobs.prepare.report import image_notes, summarize, write_report
from unicl_cli.jobs.prepare.shards import Unit, json_bytes, write_unit

_BEFORE_A_PLAN = frozenset((LOCK, "rejects"))
"""What a prepare that came to nothing may have left."""
_FEW_ROWS = 5000
_SMALL_GROUP = 512
"""A group holds about 8 MB: with this many rows in it, images are small, and few of them are not worth a pool."""


class PrepareRequest(NamedTuple):
    """The options of the command."""

    labels: tuple[str, ...]
    captions: tuple[str, ...]
    images: tuple[str, ...]
    out: Path
    options: Options = Options()


class Begun(NamedTuple):
    """What is being carried out, and how: see ``prepare``."""

    plan: CorpusPlan
    units: list[Unit]
    out: Path
    workers: int
    stop: Stop


def run(wanted: PrepareRequest, *, workers: int | None, allow_version_mix: bool, as_json: bool, stop: Stop) -> None:
    """Prepare, then write the closing table (or JSON document) to stdout."""
    write_report(prepare(wanted, workers=workers, allow_version_mix=allow_version_mix, stop=stop), as_json=as_json)


def prepare(
    wanted: PrepareRequest,
    *,
    workers: int | None = None,
    allow_version_mix: bool = False,
    redo: frozenset[str] = frozenset(),
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Make or finish the corpus in ``wanted.out``; gives the document of ``--json``. Raises Stopped when stopped.

    ``redo`` names shards that are made again although they have the right size.
    """
    out = wanted.out
    stop = stop or Stop(out, "the same command")
    named = name_sources(wanted.labels, wanted.captions, wanted.images)
    if not named:
        raise UniclError("nothing to prepare", "give at least one --labels, --captions or --images SRC")
    check_out_dir(out)
    with writing_into(stop):
        plan = make_plan(named, wanted.options)
        for line in plan.notes:
            note(line)
        document, units = _agreed(plan, out, allow_version_mix=allow_version_mix)
        remove_unfinished(out)
        markers = _markers(out, units, redo)
        begun = Begun(plan, units, out, workers or cores(), stop)
        if len(markers) == len(units) and (out / MANIFEST).is_file():
            with suppress(ValueError, KeyError, TypeError):  # damaged: it is made again from the markers
                manifest = json.loads((out / MANIFEST).read_bytes())
                told = summarize(out, plan.classes, list(markers.values()), plan.notes, manifest)
                note(f"{out} is complete: nothing to do")
                return told
        (out / MANIFEST).unlink(missing_ok=True)
        with stop.deferred():
            found = _duplicates(begun) if wanted.options.dedup == "exact" else None
            if not stop():
                _write(begun, found or duplicates.NO_DUPLICATES, markers)
        if len(markers) < len(units):
            raise Stopped(
                f"stopped: {len(markers)} of {len(units)} shards of {out} are written", f"go on with: {stop.again}"
            )
        return _finished(begun, document, [markers[unit.marker] for unit in units], found)


def _finished(
    begun: Begun, document: dict[str, Any], markers: list[Marker], found: Duplicates | None
) -> dict[str, Any]:
    """Fold the markers into the manifest, the last file to be written."""
    plan, out = begun.plan, begun.out
    repeated = duplicates.count_equal_images(out, [marker for marker in markers if marker["rows"]])
    manifest = fold_manifest(
        document,
        plan.classes,
        markers,
        name=out.resolve().name,
        dedup=found.facts if found else None,
        repeated=repeated,
    )
    report = summarize(out, plan.classes, markers, plan.notes, manifest)
    _check_no_source_is_empty(begun, report)
    for line in image_notes(manifest):
        note(line)
    write_atomic(out / MANIFEST, json_bytes(manifest))
    return report


def _check_no_source_is_empty(begun: Begun, report: dict[str, Any]) -> None:
    """No manifest for a corpus that lacks a whole source: that would train, without a word, on something else."""
    lost: dict[str, dict[str, int]] = {}
    for source in report["sources"]:
        of = lost.setdefault(source["source"], {"rows": 0})
        for name, count in (("rows", source["rows"]), *source["rejected"].items()):
            of[name] = of.get(name, 0) + count
    empty = {name: {k: n for k, n in of.items() if k != "rows"} for name, of in lost.items() if not of["rows"]}
    empty = {name: reasons for name, reasons in empty.items() if "duplicate" not in reasons}  # else others speak for it
    if not empty:
        return
    out = begun.out
    if len(empty) == len(lost):
        for file in (*(unit.marker for unit in begun.units), duplicates.FILE, PLAN):
            (out / file).unlink(missing_ok=True)  # nothing is kept, so the next attempt may bring another plan
        left_out = report["rejected"]
        raise UniclError(f"no row was left of {sum(left_out.values())}: {format_counts(left_out)}", _see(out))
    name, reasons = next(iter(empty.items()))
    raise UniclError(
        f"source '{name}': no row was left of {sum(reasons.values())}: {format_counts(reasons)}",
        f"{_see(out)}; then fix it or leave it out, with another -o (or after removing {out})",
    )


def _see(out: Path) -> str:
    return f"each row and its reason is in {out / 'rejects'}"


def check_out_dir(out: Path) -> None:
    """Never write into a directory that holds something else."""
    if out.exists() and not out.is_dir():
        raise UniclError(f"{out}: is a file", "choose another directory with -o")
    if not out.is_dir() or (out / PLAN).is_file():
        return
    foreign = sorted(item.name for item in out.iterdir() if item.name not in _BEFORE_A_PLAN and item.suffix != ".tmp")
    if foreign:
        raise UniclError(f"{out}: holds something else ({foreign[0]})", "choose an empty or a new directory with -o")


def _agreed(plan: CorpusPlan, out: Path, *, allow_version_mix: bool) -> tuple[dict[str, Any], list[Unit]]:
    """The document and units of `plan.json`, which is written if there is none. UniclError if it is another plan."""
    new = plan.document()
    file = out / PLAN
    if not file.is_file():
        units = plan.units()
        new["units"] = [unit._asdict() for unit in units]
        write_atomic(file, json_bytes(new))
        return new, units
    old = read_plan(out)
    if changed := list_differences(old, new):
        raise UniclError(
            f"{out} was begun with another plan; {'; '.join(changed)}", f"choose another -o, or remove {out}"
        )
    if old["versions"] != new["versions"] and not allow_version_mix and not (out / MANIFEST).is_file():
        raise UniclError(
            f"{out} was begun with other versions: {old['versions']}, now {new['versions']}",
            "shards would not be byte-identical: --allow-version-mix goes on, or choose another -o",
        )
    return old, units_of(old)


def read_plan(out: Path) -> dict[str, Any]:
    """The document of `plan.json`. UniclError if it cannot be read."""
    file = out / PLAN
    try:
        document = json.loads(file.read_bytes())
        units_of(document)
    except FileNotFoundError as error:
        raise UniclError(f"{file}: no such file", f"is {out} a corpus that `unicl prepare` made?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UniclError(
            f"{file}: damaged", f"finished shards of {out} can still be read; prepare into another -o"
        ) from error
    return document


def units_of(document: dict[str, Any]) -> list[Unit]:
    return [Unit(**unit) for unit in document["units"]]


def _markers(out: Path, units: Sequence[Unit], redo: frozenset[str]) -> dict[str, Marker]:
    """Markers of the units that are done: there, readable, and with a shard of the right size."""
    found: dict[str, Marker] = {}
    for unit in units:
        with suppress(FileNotFoundError, ValueError, KeyError):
            marker = json.loads((out / unit.marker).read_bytes())
            problem = damage(out, marker) if marker["rows"] else None
            if problem:
                note(f"{problem}: it is made again")
            elif unit.shard not in redo:
                found[unit.marker] = marker
    return found


def _duplicates(begun: Begun) -> Duplicates | None:
    """Which rows are left out, from the digests of all images; None if stopped."""
    if found := duplicates.read_duplicates(begun.out):
        duplicates.remove_digests(begun.units, begun.out)
        return found
    todo = duplicates.units_without_digests(begun.units, begun.out)
    there = len(begun.units) - len(todo)
    total = sum(unit.rows for unit in begun.units)
    done = total - sum(unit.rows for unit in todo)
    with Progress("compare", done=done, total=total, shards_done=there, shards=len(begun.units)) as progress:
        for _ in _results(begun, todo, duplicates.hash_unit, duplicates.NO_DUPLICATES, progress):
            there += 1
            progress.shard_done()
    if there < len(begun.units):
        return None
    held_out = frozenset(opened.named.name for opened in begun.plan.sources if opened.held_out)
    found = duplicates.find_duplicates(begun.units, held_out, begun.plan.row_at, begun.out)
    duplicates.remove_digests(begun.units, begun.out)  # once what they say is on disk
    return found


def _write(begun: Begun, found: Duplicates, markers: dict[str, Marker]) -> None:
    """Write the shards that are missing and put their markers into ``markers``."""
    todo = [unit for unit in begun.units if unit.marker not in markers]
    if markers:
        note(f"{len(markers)} of {len(begun.units)} shards are there already")
    done = sum(unit.rows for unit in begun.units if unit.marker in markers)
    total = done + sum(unit.rows for unit in todo)
    with Progress("prepare", done=done, total=total, shards_done=len(markers), shards=len(begun.units)) as progress:
        for marker in _results(begun, todo, write_unit, found, progress):
            markers[f"parts/{marker['split']}.{Path(marker['file']).stem}.json"] = marker
            progress.shard_done()


def _results(begun: Begun, todo: list[Unit], job: Job, found: Duplicates, progress: Progress) -> Any:
    plan, workers, stop = begun.plan, min(begun.workers, len(todo)), begun.stop
    work_of = partial(plan.work, out=begun.out, duplicates=found)
    few = sum(unit.rows for unit in todo) <= _FEW_ROWS and all(unit.group_rows >= _SMALL_GROUP for unit in todo)
    if workers <= 1 or few:
        return run_here(todo, work_of, plan.source, job, tick=progress.tick, stopped=stop)
    return run_pool(todo, work_of, job, workers, tick=progress.tick, stopped=stop, say=progress.say)
