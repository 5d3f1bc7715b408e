"""`--retry-failed`: the URLs of a finished corpus that failed for a temporary reason are requested again.

What comes back goes into new shards at the end, so that no shard changes and no row gets another number.
"""

from collections.abc import Sequence
from pathlib import Path

from unicl_cli.data.fetch import RETRIED
from unicl_cli.data.manifest import PLAN
from unicl_cli.formats import count_of
from unicl_cli.jobs.prepare.plan.plan import CorpusPlan
from unicl_cli.jobs.prepare.plan_file import PlanFile, RetryRecord
from unicl_cli.jobs.prepare.shards.download import NO_RESOURCES, Downloads, url_of
from unicl_cli.jobs.prepare.shards.left_out import read_left_out
from unicl_cli.jobs.prepare.shards.parts import PartMarker
from unicl_cli.jobs.prepare.shards.prepared_row import Rejected
from unicl_cli.jobs.prepare.shards.progress import note
from unicl_cli.jobs.prepare.shards.shards import json_bytes
from unicl_cli.jobs.prepare.shards.staged import NOT_COMPARED
from unicl_cli.storage.files import write_atomic


def passing_reasons(downloads: Downloads) -> frozenset[str]:
    """Return the reasons that can pass; with `--allow-private` and `--ignore-robots` also what they lift."""
    lifted = {"private_address": downloads.fetch.allow_private, "robots": not downloads.fetch.robots}
    more = {reason for reason, is_lifted in lifted.items() if is_lifted}
    return RETRIED | {"refused", NO_RESOURCES, NOT_COMPARED} | more


def add_retries(plan: CorpusPlan, saved: PlanFile, out: Path, markers: Sequence[PartMarker]) -> PlanFile:
    """Return the plan with units for the rows that are worth another try, and write it; as it is if there are none."""
    wanted = passing_reasons(plan.downloads)
    left_out = {key: row for key, row in read_left_out(out, markers, strict=True).items() if row.reason in wanted}
    generation = 1 + max((unit.generation for unit in saved.retries), default=0)
    added = [
        record
        for source in plan.sources
        for split in source.rows
        for record in _cut(plan, saved, (source.spec.name, split), left_out, generation)
    ]
    if not added:
        return saved
    return _with_retries(saved, out, [*saved.retries, *added])


def drop_overtaken(saved: PlanFile, out: Path, markers: dict[str, PartMarker]) -> PlanFile:
    """Return the plan without units of `--retry-failed` that come after a shard to be rebuilt.

    That shard requests all its URLs: rows that came back later would be in the corpus twice. Markers of dropped
    units are removed from ``markers`` and from the disk, with their shards. With `--dedup` none is: there a shard
    requests only the images that were compared.
    """
    if saved.dedup != "off":
        return saved
    lowest: dict[tuple[str, str], int] = {}
    generations = {record.name: record.generation for record in saved.retries}
    for unit in saved.all_units():
        if unit.marker not in markers:
            place, generation = (unit.source, unit.split), generations.get(unit.name, 0)
            lowest[place] = min(lowest.get(place, generation), generation)
    dropped = [r for r in saved.retries if r.generation > lowest.get((r.source, r.split), r.generation)]
    if not dropped:
        return saved
    gone = {(record.split, record.name) for record in dropped}  # splits have shards of one name
    note(f"also requesting again the URLs of {count_of(len(gone), 'shard')} of --retry-failed")
    for unit in saved.all_units():
        if (unit.split, unit.name) in gone:
            markers.pop(unit.marker, None)
            for file in (unit.marker, unit.shard, unit.rejects):
                (out / file).unlink(missing_ok=True)
    return _with_retries(saved, out, [record for record in saved.retries if (record.split, record.name) not in gone])


def _with_retries(saved: PlanFile, out: Path, retries: list[RetryRecord]) -> PlanFile:
    """Return the plan with these units of `--retry-failed`, and write it."""
    again = saved.model_copy(update={"retries": retries})
    dumped = again.model_dump(exclude_unset=True) | {"retries": [record.model_dump() for record in retries]}
    if not retries:
        del dumped["retries"]
    write_atomic(out / PLAN, json_bytes(dumped))
    return again


def _cut(
    plan: CorpusPlan, saved: PlanFile, place: tuple[str, str], left_out: dict[str, Rejected], generation: int
) -> list[RetryRecord]:
    """Return the units of one source and split."""
    name, split = place
    source = plan.find_source(name)
    numbers = [
        number
        for number, row in enumerate(source.rows[split])
        if row.key in left_out and url_of(source.source, row) is not None
    ]
    first = next(unit for unit in saved.units if (unit.source, unit.split) == place)
    starts = range(0, len(numbers), first.rows)
    records: list[RetryRecord] = []
    for count, start in enumerate(starts):
        chosen = numbers[start : start + first.rows]
        reasons = [left_out[source.rows[split][number].key].reason for number in chosen]
        records.append(
            RetryRecord(
                name=f"{name}-{first.kind}-retry{generation}-{count:05d}-of-{len(starts):05d}",
                split=split,
                source=name,
                kind=first.kind,
                group_rows=first.group_rows,
                numbers=chosen,
                retried={reason: reasons.count(reason) for reason in sorted(set(reasons))},
                generation=generation,
            )
        )
    return records
