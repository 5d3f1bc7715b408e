"""The `prepare` job: sources in, a corpus out, with what an interrupted command finished kept."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.data.manifest import MANIFEST, PLAN, EqualImages, Manifest, read_manifest, repair_hint
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.jobs.prepare.engines.choice import ON_THIS_MACHINE, EngineChoice, LateEngine
from unicl_cli.jobs.prepare.engines.engine import Job, Marker, WorkList
from unicl_cli.jobs.prepare.lock import Stop, lock_output, remove_unfinished
from unicl_cli.jobs.prepare.manifest import find_contradictions, fold_manifest
from unicl_cli.jobs.prepare.plan import duplicates, holdout
from unicl_cli.jobs.prepare.plan.duplicates import NO_DUPLICATES, Duplicates
from unicl_cli.jobs.prepare.plan.plan import CorpusPlan, make_plan
from unicl_cli.jobs.prepare.plan.request import PrepareRequest
from unicl_cli.jobs.prepare.plan_file import PlanFile, agree_on_plan, check_out_dir, check_versions
from unicl_cli.jobs.prepare.report import write_report, write_summary
from unicl_cli.jobs.prepare.retry import add_retries, drop_overtaken, passing_reasons
from unicl_cli.jobs.prepare.shards import not_in, signatures
from unicl_cli.jobs.prepare.shards.download import Downloads
from unicl_cli.jobs.prepare.shards.parts import PartMarker, find_begun, read_finished, read_in_order
from unicl_cli.jobs.prepare.shards.progress import Progress, format_counts, note, warn
from unicl_cli.jobs.prepare.shards.shards import json_bytes, write_unit
from unicl_cli.jobs.prepare.shards.units import Unit
from unicl_cli.storage.documents import check_document
from unicl_cli.storage.files import write_atomic


class Preparation(NamedTuple):
    """A plan that is being carried out: its units, and how the engine runs them."""

    plan: CorpusPlan
    units: list[Unit]
    out: Path
    engine: LateEngine
    stop: Stop


def run(
    request: PrepareRequest,
    engine: EngineChoice,
    *,
    workers: int | None,
    allow_version_mix: bool,
    as_json: bool,
    stop: Stop,
) -> None:
    """Prepare, then write the closing table (or JSON document) to stdout."""
    report = prepare(request, workers=workers, allow_version_mix=allow_version_mix, stop=stop, engine=engine)
    write_report(report, as_json=as_json)


def prepare(
    request: PrepareRequest,
    *,
    workers: int | None = None,
    allow_version_mix: bool = False,
    redo: frozenset[str] = frozenset(),
    stop: Stop | None = None,
    engine: EngineChoice = ON_THIS_MACHINE,
) -> dict[str, Any]:
    """Make or finish the corpus in ``request.out`` and return the document of `--json`.

    ``redo`` names shards, or the manifest, to rebuild although they look sound. UniclError for sources, options or a
    directory that do not fit; Stopped if ``stop`` was requested. The engine starts once there is a unit to make.
    """
    engine.check()
    out = request.out
    stop = stop or Stop(out, "the same command")
    sources = request.sources()
    check_out_dir(out)
    with lock_output(stop), LateEngine(engine, workers) as late:
        plan = make_plan(sources, request.options, out, downloads=request.downloads)
        for line in plan.notes:
            warn(line)
        saved = agree_on_plan(plan, out, allow_version_mix=allow_version_mix)
        units = saved.all_units()
        _check_folders(out, units)
        stop.may_remove = True
        remove_unfinished(out)
        markers = _read_markers(out, units, len(plan.classes), redo)
        if request.retry_failed:
            saved = _plan_retries(plan, saved, out, markers, allow_version_mix=allow_version_mix)
        saved = drop_overtaken(saved, out, markers)
        units = saved.all_units()
        is_new = not find_begun(out, units)
        is_finished = len(markers) == len(units) and MANIFEST not in redo
        if is_finished and (report := _read_finished(plan, saved, out, list(markers.values()))):
            note(f"{out} is complete: nothing to do")
            return report
        _check_findings(plan, out, markers)
        rows_before = None if request.retry_failed else _count_rows(out)
        (out / MANIFEST).unlink(missing_ok=True)
        preparation = Preparation(plan, units, out, late, stop)
        if plan.others:
            not_in.write_index(plan.others, out)
        with stop.defer_interrupts():
            found = _find_duplicates(preparation, markers)
            _write_shards(preparation, found or NO_DUPLICATES, markers)
        if len(markers) < len(units):
            raise Stopped(
                f"{out}: stopped after {len(markers):,} of {len(units):,} shards", f"continue with: {stop.again}"
            )
        not_in.remove_index(out)
        signatures.remove_staged(units, out)
        report = _finish_corpus(preparation, saved, [markers[unit.marker] for unit in units], found, is_new=is_new)
        if rows_before not in (None, report["rows"]):
            warn(f"{out}: now has {report['rows']:,} rows; it had {rows_before:,} before shards were rebuilt")
        return report


def _check_findings(plan: CorpusPlan, out: Path, markers: Mapping[str, PartMarker]) -> None:
    """Raise UniclError if shards of downloaded images are finished, and what was found among them is not known."""
    if plan.options.dedup == "off" or not plan.has_urls or not markers:
        return
    if duplicates.read_duplicates(out) is None:
        raise UniclError(
            f"{out / duplicates.FILE}: missing, and the images are not downloaded again to compare them",
            "restore it from a copy, or prepare the list into another -o",
        )


def _count_rows(out: Path) -> int | None:
    """Return the rows of a finished corpus, some of whose shards are to be rebuilt; None for another."""
    try:
        return read_manifest(out)[0].rows if (out / MANIFEST).is_file() else None
    except UniclError:
        return None


def _plan_retries(
    plan: CorpusPlan, saved: PlanFile, out: Path, markers: dict[str, PartMarker], *, allow_version_mix: bool
) -> PlanFile:
    """Return the plan with units for URLs to ask again; as it is if an earlier such command has not ended.

    UniclError if another unit is not finished, or the corpus was made with other versions.
    """
    units = saved.all_units()
    missing = [unit for unit in units if unit.marker not in markers]
    if missing and all(unit.numbers for unit in missing):
        return saved
    if missing:
        raise UniclError(f"{out}: is not finished", "run the same command without --retry-failed first")
    check_versions(plan, saved, out, allow_version_mix=allow_version_mix)
    again = add_retries(plan, saved, out, [markers[unit.marker] for unit in units])
    if again is saved:
        note("no URL failed for a temporary reason")
    return again


def _check_folders(out: Path, units: Sequence[Unit]) -> None:
    """Raise UniclError if a folder that is written to lies outside of the corpus, through a symbolic link."""
    root = out.resolve()
    folders = {Path(file).parent for unit in units for file in (unit.shard, unit.marker, unit.rejects)}
    for folder in sorted(folders):
        if not (out / folder).resolve().is_relative_to(root):
            raise UniclError(
                f"{out / folder}: is a symbolic link that leads out of the corpus",
                "replace it by a folder, or prepare into an -o on the other disk",
            )


def _read_markers(out: Path, units: Sequence[Unit], classes: int, redo: frozenset[str]) -> dict[str, PartMarker]:
    """Return the markers of finished units: sound, and with a shard of the right size."""
    markers: dict[str, PartMarker] = {}
    begun = find_begun(out, units)
    results = read_in_order(out, lambda unit: read_finished(out, unit, classes), begun)
    for unit, found in zip(begun, results, strict=True):
        if isinstance(found, str):
            warn(found)
        elif found is not None and unit.shard not in redo:
            markers[unit.marker] = found
    return markers


def _read_finished(
    plan: CorpusPlan, saved: PlanFile, out: Path, markers: Sequence[PartMarker]
) -> dict[str, Any] | None:
    """Return the report of a corpus whose manifest follows from plan and markers; None if it is to be rebuilt."""
    if not (out / MANIFEST).exists():
        return None
    try:
        manifest, _ = read_manifest(out)
        found = duplicates.read_duplicates(out) if plan.options.dedup != "off" else None
        dedup = found.facts if found else None
        equal = manifest.equal_pictures or EqualImages(in_a_kind=0, in_two_kinds=0)
        repeated = {**equal.model_dump(), "of_eval": manifest.duplicates_of_eval}
        problems = find_contradictions(manifest, saved, markers, dedup=dedup, repeated=repeated)
    except UniclError as error:
        warn(f"{error.message}: rebuilding it")
        return None
    if problems:
        warn(f"{out / MANIFEST}: damaged: {problems[0]}: rebuilding it")
    optional = {"survival": False, "set_sizes": manifest.has_sets, "not_in": bool(plan.others)}
    facts = Manifest.model_fields.keys() - {name for name, is_there in optional.items() if not is_there}
    is_old = facts - manifest.model_fields_set  # lacks facts that the report has
    return None if problems or is_old else write_summary(out, plan, markers, manifest)


def _find_duplicates(preparation: Preparation, markers: Mapping[str, PartMarker]) -> Duplicates | None:
    """Find rows with equal or nearly equal images for `--dedup`; None without that option, or if stopped."""
    plan, units, out, *_ = preparation
    if plan.options.dedup == "off":
        return None
    near = plan.options.dedup == "near"
    if plan.has_urls:
        return _find_among_downloads(preparation, markers, near=near)
    if found := _read_duplicates(out):
        signatures.remove_digests(units, out)
        return found
    if not _run_over(preparation, units, signatures.units_without_digests(units, out, near=near), signatures.hash_unit):
        return None
    found = duplicates.find_duplicates(units, plan.row_at, out, near=near)
    signatures.remove_digests(units, out)  # only now: what they say is on disk
    return found


def _find_among_downloads(
    preparation: Preparation, markers: Mapping[str, PartMarker], *, near: bool
) -> Duplicates | None:
    """Find duplicates of a corpus with URLs: they are downloaded first, and compared with what is there already.

    These files stay: the digests for `--retry-failed`, and the rows until their shards are written.
    """
    plan, units, out, *_ = preparation
    found = duplicates.read_duplicates(out) or NO_DUPLICATES
    fresh = [unit for unit in units if unit.shard not in found.compared]
    if not fresh:
        return found
    local = [unit for unit in fresh if not plan.find_source(unit.source).has_urls]
    remote = [unit for unit in fresh if plan.find_source(unit.source).has_urls]
    missing = [unit for unit in remote if not (out / unit.staged).is_file()]
    if not _run_over(preparation, remote, missing, signatures.stage_unit):
        return None
    missing = signatures.units_without_digests(local, out, near=near)
    if not _run_over(preparation, local, missing, signatures.hash_unit):
        return None
    finished = frozenset(unit.shard for unit in units if unit.marker in markers)
    earlier = duplicates.Earlier(found, finished, plan.rows_of)
    return duplicates.find_duplicates(units, plan.row_at, out, near=near, earlier=earlier)


def _run_over(preparation: Preparation, units: Sequence[Unit], missing: Sequence[Unit], job: Job) -> bool:
    """Run a job on the ``missing`` ones of some units; False if it was stopped before all were done."""
    if not missing:
        return True
    label = "download" if job is signatures.stage_unit else "compare"
    with _show_progress(label, units, missing) as progress:
        for _ in _run_engine(preparation, missing, job, NO_DUPLICATES, progress):
            progress.shard_done()
    return progress.shards_done == len(units)


def _read_duplicates(out: Path) -> Duplicates | None:
    """Return the saved duplicates; None if they are to be found, also because the file is damaged."""
    try:
        return duplicates.read_duplicates(out)
    except UniclError as error:
        warn(f"{error.message}: comparing the images again")
        return None


def _write_shards(preparation: Preparation, found: Duplicates, markers: dict[str, PartMarker]) -> None:
    """Write the missing shards, and add their markers to ``markers``."""
    units = preparation.units
    todo = [unit for unit in units if unit.marker not in markers]
    if preparation.stop():
        return
    if markers:
        note(f"continuing: {len(markers)} of {len(units)} shards are already written")
    by_shard = {unit.shard: unit.marker for unit in todo}
    with _show_progress("prepare", units, todo) as progress:
        for marker in _run_engine(preparation, todo, write_unit, found, progress):
            name = by_shard[marker["file"]]
            markers[name] = check_document(marker, PartMarker, preparation.out / name, repair_hint(preparation.out))
            progress.shard_done()


def _show_progress(label: str, units: Sequence[Unit], todo: Sequence[Unit]) -> Progress:
    total = sum(unit.rows for unit in units)
    done = total - sum(unit.rows for unit in todo)
    return Progress(label, done=done, total=total, shards_done=len(units) - len(todo), shards=len(units))


def _run_engine(
    preparation: Preparation, units: Sequence[Unit], job: Job, found: Duplicates, progress: Progress
) -> Iterator[Marker]:
    plan, stop = preparation.plan, preparation.stop
    if not units or stop():
        return iter(())
    run_units, workers = preparation.engine.start()
    remote = any(of.has_urls for of in plan.sources)
    if remote:
        workers = max(1, min(workers, len(units), plan.downloads.per_host))
        plan = plan._replace(downloads=plan.downloads.share_among(workers))
    todo = WorkList(job, units, partial(plan.work, out=preparation.out, duplicates=found), plan.source, remote)
    return run_units(todo, workers=workers, progress=progress, stopped=stop)


def _finish_corpus(
    preparation: Preparation, saved: PlanFile, markers: list[PartMarker], found: Duplicates | None, *, is_new: bool
) -> dict[str, Any]:
    """Fold the markers into the manifest, which is the last file to be written, and return the report."""
    plan, units, out, *_ = preparation
    document = fold_manifest(
        saved,
        plan.classes,
        markers,
        name=out.resolve().name,
        dedup=found.facts if found else None,
        repeated=duplicates.count_equal_images(out, [marker for marker in markers if marker.rows]),
    )
    manifest = check_document(document, Manifest, out / MANIFEST, repair_hint(out))
    report = write_summary(out, plan, markers, manifest)
    _check_no_source_is_empty(out, units if is_new else (), report, plan.downloads)
    for line in report["notes"][len(plan.notes) :]:
        warn(line)
    write_atomic(out / MANIFEST, json_bytes(document))
    return report


def _check_no_source_is_empty(out: Path, new: Sequence[Unit], report: dict[str, Any], downloads: Downloads) -> None:
    """Raise UniclError if a whole source was left out: training would silently use other data than asked for.

    If no row at all is left of a corpus whose units are all ``new``, its plan and markers are removed, so that the next
    attempt may have another plan.
    """
    rows: Counter[str] = Counter()
    rejected: dict[str, Counter[str]] = {}
    for source in report["sources"]:
        rows[source["source"]] += source["rows"]
        rejected.setdefault(source["source"], Counter()).update(source["rejected"])
    live_on = {"duplicate", "near_duplicate"}
    empty = [name for name in rejected if not rows[name] and not rejected[name].keys() & live_on]
    if not empty:
        return
    see = f"see each row and its reason in {out / 'rejects'}"
    if len(empty) == len(rejected):
        for file in (*(unit.marker for unit in new), duplicates.FILE, holdout.FILE, PLAN) if new else ():
            (out / file).unlink(missing_ok=True)
        signatures.remove_digests(new, out)
        reasons = report["rejected"]
        raise UniclError(f"{out}: no usable rows (rejected: {format_counts(reasons)})", see)
    name, reasons = empty[0], rejected[empty[0]]
    if passing_reasons(downloads) & reasons.keys():
        see = f"add --retry-failed to request its URLs again; {see}"
    raise UniclError(
        f"source '{name}': no usable rows (rejected: {format_counts(reasons)})",
        f"{see}; fix the source or leave it out, then choose another -o (or remove {out})",
    )
