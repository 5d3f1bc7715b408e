"""`prepare --verify` and `--repair`: what is damaged in a corpus, and making just that again."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicl_cli.core.byte_size import decimal_size
from unicl_cli.data.corpus import MANIFEST, mending
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.lock import Stop
from unicl_cli.jobs.prepare.plan import Options
from unicl_cli.jobs.prepare.prepare import Wanted, prepare, read_plan, units_of
from unicl_cli.jobs.prepare.progress import Progress, note
from unicl_cli.jobs.prepare.verify import Found, Problem, check, survey


def run_verify(out: Path, *, as_json: bool) -> None:
    """Write what was found to stdout; UniclError with exit code 1 if anything is wrong."""
    found = _checked(out)
    document = _document(out, found)
    sys.stdout.write("\n".join([json.dumps(document, ensure_ascii=False)] if as_json else _lines(out, found)) + "\n")
    if found.problems:
        first = found.problems[0]
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        goes_on = "run the same `unicl prepare` command again: it goes on"
        hint = goes_on if not found.finished and len(found.problems) == 1 else mending(out)
        raise UniclError(f"{out / first.file}: {first.problem}{more}", hint, exit_code=1)


def run_repair(wanted: Wanted, *, workers: int | None, allow_version_mix: bool, as_json: bool, stop: Stop) -> None:
    """Make damaged shards again from the sources that `plan.json` names, or that were given; then say what was done."""
    out = wanted.out
    found = _checked(out)
    document = read_plan(out)
    units = units_of(document)
    _check_repairable(out, found, {unit.shard for unit in units})
    damaged = sorted({unit.shard for unit in units} & {problem.file for problem in found.problems})
    before = _sums(out)
    if found.problems:
        note(f"{len(found.problems)} problems; {len(damaged)} shards are made again")
        if not (wanted.labels or wanted.captions or wanted.images):
            wanted = _planned(document, out)
        prepare(wanted, workers=workers, allow_version_mix=allow_version_mix, redo=frozenset(damaged), stop=stop)
        after = _sums(out)
        if other := [file for file in before if before[file] != after.get(file)]:
            raise UniclError(
                f"{out / other[0]}: was made again with other bytes ({len(other)} of {len(damaged)} shards)",
                "its images or the installed libraries have changed: the corpus is whole, but not the one it was",
                exit_code=1,
            )
    remaining = _checked(out) if found.problems else found
    report = _document(out, remaining) | {"repaired": damaged}
    done = f"{out}: {len(damaged)} of {remaining.shards} shards were made again, byte for byte as they were"
    sys.stdout.write(f"{json.dumps(report, ensure_ascii=False) if as_json else done}\n")
    if remaining.problems:
        raise UniclError(
            f"{out / remaining.problems[0].file}: {remaining.problems[0].problem}",
            "this cannot be repaired",
            exit_code=1,
        )


def _checked(out: Path) -> Found:
    of = survey(out)
    total = sum(shard["rows"] for shard in of.shards)
    with Progress("verify", done=0, total=total, shards_done=0, shards=len(of.shards)) as progress:

        def shard_done(shard: Mapping[str, Any]) -> None:
            progress.tick(shard["rows"], shard["bytes"], {})
            progress.shard_done()

        return check(of, shard_done)


def _check_repairable(out: Path, found: Found, planned: set[str]) -> None:
    """Repair makes shards; what lies there beside them is the user's to remove."""
    for problem in found.problems:
        if problem.file not in (MANIFEST, "data", *planned):
            raise UniclError(f"{out / problem.file}: {problem.problem}", "move it away, then repair")


def _planned(document: dict[str, Any], out: Path) -> Wanted:
    """The command that `plan.json` was made by."""
    templates = document["templates"]
    sources = {
        kind: tuple(source["src"] for source in document["sources"] if source["kind"] == kind)
        for kind in ("labels", "captions", "images")
    }
    options = Options(
        templates=templates if isinstance(templates, str) else tuple(templates),
        keep_order=document["seed"] is None,
        **{name: document[name] for name in ("size", "min_side", "holdout", "shard_mb", "limit", "text", "dedup")},
    )
    return Wanted(**sources, out=out, options=options)


def _sums(out: Path) -> dict[str, str]:
    """Shard -> sha256, as the manifest has it; empty if there is none that can be read."""
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        return {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _document(out: Path, found: Found) -> dict[str, Any]:
    return {
        "schema": "unicl/prepare/1",
        "corpus": str(out),
        "ok": not found.problems,
        **{name: getattr(found, name) for name in ("finished", "shards", "rows", "bytes", "decoded")},
        "problems": [problem._asdict() for problem in found.problems],
    }


def _lines(out: Path, found: Found) -> list[str]:
    looked = f"{found.shards:,} shards, {found.rows:,} rows, {decimal_size(found.bytes)}"
    if not found.problems:
        return [f"{out}: whole: {looked}; every sha256 is right, {found.decoded:,} images decoded"]
    return [*(_said(problem) for problem in found.problems), f"{out}: looked at {looked}"]


def _said(problem: Problem) -> str:
    return f"{problem.file}: {problem.problem}"
