"""The `prepare --verify` and `--repair` jobs: find the damaged shards of a corpus, and make only those again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicl_cli.data.manifest import MANIFEST, read_manifest, repair_hint
from unicl_cli.errors import UniclError, print_line
from unicl_cli.formats import byte_size, count_of
from unicl_cli.jobs.prepare.lock import Stop
from unicl_cli.jobs.prepare.plan import duplicates
from unicl_cli.jobs.prepare.plan.request import PrepareOptions, PrepareRequest
from unicl_cli.jobs.prepare.plan_file import PlanFile, read_plan
from unicl_cli.jobs.prepare.prepare import prepare
from unicl_cli.jobs.prepare.shards.download import Downloads
from unicl_cli.jobs.prepare.shards.progress import Progress, note
from unicl_cli.jobs.prepare.verify import UNFINISHED, Finding, VerifyResult, Written, check_shards, survey
from unicl_cli.storage.json_output import print_json


def run_verify(out: Path, *, as_json: bool) -> None:
    """Check the corpus and write the result to stdout. UniclError with exit code 1 if anything is wrong."""
    found = _verify(out)
    document = _build_document(out, found)
    if as_json:
        print_json(document)
    else:
        for line in _format_result(out, found):
            print_line(line)
    if found.problems:
        raise _build_error(out, found.problems, listed=not as_json)


def run_repair(
    request: PrepareRequest, *, workers: int | None, allow_version_mix: bool, as_json: bool, stop: Stop
) -> None:
    """Make damaged shards again from the given sources, or else those in `plan.json`, and report to stdout.

    UniclError if anything stays damaged or comes out with other bytes.
    """
    out = request.out
    found = _verify(out)
    plan = read_plan(out)
    units = plan.all_units()
    problems = {problem.file for problem in found.problems}
    _check_repairable(out, found, {file for unit in units for file in (unit.shard, unit.marker)})
    damaged = sorted(unit.shard for unit in units if problems & {unit.shard, unit.marker})
    redo = frozenset((*damaged, *problems & {MANIFEST}))
    before = _read_checksums(out)
    if found.problems:
        note(f"problems found: {len(found.problems)}; shards to rebuild: {len(damaged)}")
        if not (request.labels or request.captions or request.images):
            request = _request_of(plan, out, request.downloads)
        prepare(request, workers=workers, allow_version_mix=allow_version_mix, redo=redo, stop=stop)
        after = _read_checksums(out)
        if other := [file for file in before if before[file] != after.get(file)]:
            raise UniclError(
                f"{out / other[0]}: repaired, but with other bytes ({len(other)} of {len(damaged)} shards)",
                "use the changed corpus (it is complete), or repair it with the original images and library versions",
                exit_code=1,
            )
    remaining = _verify(out) if found.problems else found
    report = _build_document(out, remaining) | {"repaired": damaged}
    done = f"{out}: nothing to repair ({count_of(remaining.shards, 'shard')} checked)"
    if found.problems:
        done = f"{out}: repaired {len(damaged)} of {count_of(remaining.shards, 'shard')}, byte for byte as before"
        done = done if damaged else f"{out}: rebuilt {MANIFEST}; no shard was damaged"
    if as_json:
        print_json(report)
    else:
        print_line(done)
    if remaining.problems:
        raise UniclError(
            f"{out / remaining.problems[0].file}: {remaining.problems[0].problem}",
            "prepare the corpus again into another -o: this cannot be repaired",
            exit_code=1,
        )


def _build_error(out: Path, problems: Sequence[Finding], *, listed: bool) -> UniclError:
    """Return the error of `--verify`: the first problem, or only their number if all are ``listed`` on stdout."""
    said = f"{out}: {count_of(len(problems), 'problem')} found"
    if not listed:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        said = f"{out / problems[0].file}: {problems[0].problem}{more}"
    only_unfinished = [problem.problem for problem in problems] == [UNFINISHED]
    hint = "run the same `unicl prepare` command again to continue" if only_unfinished else repair_hint(out)
    return UniclError(said, hint, exit_code=1)


def _verify(out: Path) -> VerifyResult:
    of = survey(out)
    total = sum(shard.rows for shard in of.shards)
    with Progress("verify", done=0, total=total, shards_done=0, shards=len(of.shards)) as progress:

        def shard_done(shard: Written) -> None:
            progress.tick(shard.rows, shard.bytes, {})
            progress.shard_done()

        return check_shards(of, shard_done)


def _check_repairable(out: Path, found: VerifyResult, planned: set[str]) -> None:
    """Raise UniclError for problems with files that are not shards of the plan: only their owner may remove them."""
    for problem in found.problems:
        if problem.file not in (MANIFEST, "data", duplicates.FILE, *planned):
            raise UniclError(
                f"{out / problem.file}: {problem.problem}", "move it out of the corpus, then run --repair again"
            )


def _request_of(plan: PlanFile, out: Path, downloads: Downloads) -> PrepareRequest:
    """Return the request that `plan.json` was made for, with the ``downloads`` of this command."""
    labels, captions, images = (
        tuple(source.src for source in plan.sources if source.kind == kind) for kind in ("labels", "captions", "images")
    )
    options = PrepareOptions(
        templates=plan.templates if isinstance(plan.templates, str) else tuple(plan.templates),
        size=plan.size,
        min_side=plan.min_side,
        holdout=plan.holdout,
        shard_mb=plan.shard_mb,
        limit=plan.limit,
        text=plan.text,
        dedup=plan.dedup,
        keep_order=plan.seed is None,
        taxonomy=plan.taxonomy and plan.taxonomy.src,
        query_list=plan.queries and plan.queries.src,
        max_per_query=plan.queries and plan.queries.most,
        balance=plan.balance,
        not_in=tuple(other.src for other in plan.not_in),
    )
    return PrepareRequest(labels, captions, images, out, options, downloads)


def _read_checksums(out: Path) -> dict[str, str]:
    """Return shard -> sha256 as the manifest has it; empty if it cannot be read."""
    try:
        return {shard.file: shard.sha256 for shard in read_manifest(out)[0].shards}
    except UniclError:
        return {}


def _build_document(out: Path, found: VerifyResult) -> dict[str, Any]:
    return {
        "schema": "unicl/prepare/1",
        "corpus": str(out),
        "ok": not found.problems,
        **{name: getattr(found, name) for name in ("finished", "shards", "rows", "bytes", "decoded")},
        "problems": [problem._asdict() for problem in found.problems],
    }


def _format_result(out: Path, found: VerifyResult) -> list[str]:
    checked = f"{count_of(found.shards, 'shard')}, {count_of(found.rows, 'row')}, {byte_size(found.bytes)}"
    if not found.problems:
        return [
            f"{out}: no damage found: {checked}",
            f"every sha256 matches; {count_of(found.decoded, 'image')} decoded",
        ]
    return [*(f"{problem.file}: {problem.problem}" for problem in found.problems), f"{out}: checked {checked}"]
