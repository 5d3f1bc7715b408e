"""The output directory's `plan.json`: written once, then compared with the plan of every later command."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from unicl_cli.data.manifest import (
    MANIFEST,
    PLAN,
    SCHEMA_VERSION,
    SETS_VERSION,
    Count,
    Kind,
    Name,
    Positive,
    Sha256,
    Templates,
)
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.lock import LOCK
from unicl_cli.jobs.prepare.plan import holdout
from unicl_cli.jobs.prepare.plan.plan import CorpusPlan
from unicl_cli.jobs.prepare.shards.shards import json_bytes
from unicl_cli.jobs.prepare.shards.units import MAX_GROUP_ROWS, MAX_UNIT_ROWS, Unit, cut_into_units
from unicl_cli.storage.documents import Document, check_document, read_document
from unicl_cli.storage.files import is_leftover, write_atomic
from unicl_cli.storage.lock import check_unused, is_lock

HASHED = ("classes",)
"""Fields of a plan that are a hash, which says nothing to people."""
_REJECTS = re.compile(r".+\..+-(labels|captions|images)-.+\.jsonl")
"""The names of files in ``rejects``."""


class SourceRecord(Document):
    """A source: its name in the corpus, what was asked for, its rows by split, and a hash of its content."""

    name: Name
    kind: Kind
    src: str
    rows: dict[Name, Positive]
    fingerprint: str


class UnitRecord(Document):
    """A unit; see `shards.Unit`."""

    name: Name
    split: Name
    source: str
    kind: Kind
    first: Count
    rows: Annotated[Positive, Field(le=MAX_UNIT_ROWS)]
    group_rows: Annotated[Positive, Field(le=MAX_GROUP_ROWS)]


class RetryRecord(Document):
    """A unit of `--retry-failed`: the ``numbers`` of its rows, and the reasons for which they were left out."""

    name: Name
    split: Name
    source: str
    kind: Kind
    group_rows: Annotated[Positive, Field(le=MAX_GROUP_ROWS)]
    numbers: Annotated[list[Count], Field(min_length=1, max_length=MAX_UNIT_ROWS)]
    retried: dict[str, Positive]
    generation: Positive


class TaxonomyRecord(Document):
    """The value of `--taxonomy`, and a hash of its nodes."""

    src: str
    sha256: Sha256


class QueryRecord(Document):
    """The value of `--query-list`, a hash of its queries, and the most rows of each."""

    src: str
    sha256: Sha256
    most: Positive | None


class OtherRecord(Document):
    """A corpus of `--not-in`: its name and value on the command line, its split, and the sha256 of its manifest."""

    name: str
    src: str
    split: str | None
    checksum: Sha256


class PlanFile(Document):
    """The content of `plan.json`. What has a default came later than the first corpora."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SETS_VERSION)]
    versions: dict[str, str]
    size: Positive | None
    min_side: Count = 0
    holdout: Annotated[int | float, Field(ge=0, le=1)] | None
    shard_mb: Positive
    limit: Count | None
    text: Literal["clean", "raw"]
    dedup: Literal["off", "exact", "near"]
    keep_order: bool = False
    seed: int | None
    templates: Templates
    classes: Sha256
    taxonomy: TaxonomyRecord | None = None
    queries: QueryRecord | None = None
    balance: Positive | None = None
    not_in: list[OtherRecord] = Field(default_factory=list)
    sources: Annotated[list[SourceRecord], Field(min_length=1)]
    units: list[UnitRecord]
    retries: list[RetryRecord] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_units(self) -> Self:
        """Compare the units with the cut of the sources that they must be: every row once, in order, under its name."""
        planned = [(source, split) for source in self.sources for split in source.rows]
        groups = [list(of) for _, of in groupby(self.units, lambda unit: (unit.source, unit.split))]
        if len({source.name for source in self.sources}) < len(self.sources) or len(groups) != len(planned):
            raise ValueError("units: are not those of the sources and their splits")
        for (source, split), units in zip(planned, groups, strict=True):
            rows = source.rows[split]
            if sum(unit.rows for unit in units) != rows:
                raise ValueError(f"units: do not have the {rows} rows of {source.name} in {split}")
            first = units[0]
            whole = {"unit_rows": first.rows, "group_rows": first.group_rows}
            if list(cut_into_units(source.name, source.kind, {split: rows}, **whole)) != list(map(_as_unit, units)):
                raise ValueError(f"units: do not cover the rows of {source.name} in {split} once, in order")
        return self

    @model_validator(mode="after")
    def _check_retries(self) -> Self:
        """Check that units of `--retry-failed` name rows that there are, for as many reasons."""
        rows = {(source.name, source.kind, split): n for source in self.sources for split, n in source.rows.items()}
        for unit in self.retries:
            most = rows.get((unit.source, unit.kind, unit.split), 0)
            if max(unit.numbers) >= most or len(set(unit.numbers)) < len(unit.numbers):
                raise ValueError(f"retries: {unit.name} has rows that are not those of its source")
            if sum(unit.retried.values()) != len(unit.numbers):
                raise ValueError(f"retries: {unit.name} has other reasons than rows")
        return self

    def all_units(self) -> list[Unit]:
        """Return the units, in order; those of `--retry-failed` last."""
        return [*map(_as_unit, self.units), *map(_as_retry, self.retries)]

    def document(self) -> dict[str, Any]:
        """Return the content as it is in the file, without the units."""
        return self.model_dump(exclude={"units", "retries"}, exclude_unset=True)


def _as_unit(unit: UnitRecord) -> Unit:
    return Unit(unit.name, unit.split, unit.source, unit.kind, unit.first, unit.rows, unit.group_rows)


def _as_retry(unit: RetryRecord) -> Unit:
    numbers, reasons = tuple(unit.numbers), tuple(unit.retried.items())
    return Unit(unit.name, unit.split, unit.source, unit.kind, 0, len(numbers), unit.group_rows, numbers, reasons)


def check_out_dir(out: Path) -> None:
    """Raise UniclError unless ``out`` is new, empty or a corpus. Nothing is written or removed."""
    if (out / PLAN).is_file():
        read_plan(out)
    else:
        check_unused(out, "choose an empty or new directory with -o", _is_beginning)


def _is_beginning(path: Path) -> bool:
    """Return whether ``path`` is what a `prepare` without a plan may have left: all its rows were left out."""
    if path.name == LOCK:
        return is_lock(path)
    if path.name == holdout.FILE:
        return holdout.is_saved(path)
    if path.name != "rejects" or path.is_symlink() or not path.is_dir():
        return False
    return all(_REJECTS.fullmatch(file.name) or is_leftover(file) for file in path.iterdir())


def agree_on_plan(plan: CorpusPlan, out: Path, *, allow_version_mix: bool) -> PlanFile:
    """Return the content of `plan.json`, after writing it if it is missing.

    UniclError if the corpus was started with another plan or other versions.
    """
    new = plan.document()
    if not (out / PLAN).is_file():
        plan.holdout.save(out)
        new["units"] = [{name: getattr(unit, name) for name in UnitRecord.model_fields} for unit in plan.units()]
        saved = check_document(new, PlanFile, out / PLAN, "check the options of this command")
        write_atomic(out / PLAN, json_bytes(new))
        return saved
    saved = read_plan(out)
    check_same_plan(out, saved, new)
    plan.holdout.save(out)
    if not (out / MANIFEST).is_file():
        check_versions(plan, saved, out, allow_version_mix=allow_version_mix)
    return saved


def check_versions(plan: CorpusPlan, saved: PlanFile, out: Path, *, allow_version_mix: bool) -> None:
    """Raise UniclError if shards would be written by other versions than those of the corpus."""
    now = plan.document()["versions"]
    if saved.versions != now and not allow_version_mix:
        raise UniclError(
            f"{out}: was started with other versions ({format_versions(saved.versions)}; now {format_versions(now)})",
            "install those versions, choose another -o, or add --allow-version-mix (shards are then not reproducible)",
        )


def check_same_plan(out: Path, saved: PlanFile, new: dict[str, Any]) -> None:
    """Raise UniclError with every difference if two plans are not the same."""
    if changed := list_differences(saved.document(), new):
        raise UniclError(
            f"{out}: was started with another plan; {'; '.join(changed)}",
            f"choose another directory with -o, or remove {out}",
        )


def list_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the differences of two plans, as ``field: old -> new``; versions and spellings of sources may differ."""
    same_share = old.get("holdout") == new["holdout"]
    if same_share and "validation" in new and "validation" not in old:
        return ["an older unicl chose its validation rows by their keys; now they are chosen by image"]
    taxonomy = _compare_taxonomies(old.get("taxonomy"), new.get("taxonomy"))
    skipped = ("versions", "units", "sources", "validation", "taxonomy", "queries", "not_in")
    new = {**({"balance": None} if "balance" in old else {}), **new}
    skipped += ("classes", "schema_version") if taxonomy else ()  # they follow from it
    changed = [k for k in new if k not in skipped and old.get(k) != new[k]]
    said = [*taxonomy, *_compare_queries(old.get("queries"), new.get("queries"))]
    said += [
        f"the {k} differ" if k in HASHED else f"{k}: {_format_value(old.get(k))} -> {_format_value(new.get(k))}"
        for k in changed
    ]
    said += _compare_others(old.get("not_in", []), new.get("not_in", []))
    before = {(s["name"], s["kind"]): s for s in old.get("sources", [])}
    after = {(s["name"], s["kind"]): s for s in new["sources"]}
    said += [f"source '{name}' ({kind}) is new" for name, kind in after.keys() - before.keys()]
    said += [f"source '{name}' ({kind}) is missing" for name, kind in before.keys() - after.keys()]
    for at in sorted(before.keys() & after.keys()):
        fields = {"rows": "number of rows", "fingerprint": "contents"}
        changed = [word for field, word in fields.items() if before[at][field] != after[at][field]]
        if changed:
            said.append(f"source '{at[0]}' ({at[1]}) has changed ({' and '.join(changed)})")
    if not said and old.get("validation") != new.get("validation"):
        said.append("other rows are held out for validation: some images, or holdout.json, have changed")
    return said


def _compare_queries(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """Return the differences of two lists of queries; a file may have another name."""
    if not old or not new:
        return [f"query-list: {old and old['src']} -> {new and new['src']}"] if old or new else []
    said = [f"the queries of {new['src']} differ"] if old["sha256"] != new["sha256"] else []
    return said + ([f"max-per-query: {old['most']} -> {new['most']}"] if old["most"] != new["most"] else [])


def _compare_taxonomies(old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> list[str]:
    """Return the difference of two taxonomies; a file may be spelled or formatted in another way."""
    if (old and old["sha256"]) == (new and new["sha256"]):
        return []
    if old and new and old["src"] == new["src"]:
        return [f"the taxonomy {new['src']} has changed"]
    return [f"taxonomy: {old['src'] if old else 'none'} -> {new['src'] if new else 'none'}"]


def _compare_others(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the difference of the corpora of `--not-in`; one of them may have moved."""
    before, after = ([(of["checksum"], of["split"]) for of in corpora] for corpora in (old, new))
    if before == after:
        return []
    if [of["src"] for of in old] == [of["src"] for of in new]:
        changed = next(of["src"] for of, a, b in zip(old, before, after, strict=True) if a != b)
        return [f"the corpus {changed} of --not-in has changed"]
    return [" -> ".join(f"--not-in {', '.join(of['src'] for of in corpora) or 'none'}" for corpora in (old, new))]


def _format_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 40 else text[:37] + "..."


def read_plan(out: Path) -> PlanFile:
    """Return the content of `plan.json`. UniclError if it cannot be read, or if its units are not those of its rows."""
    file = out / PLAN
    try:
        return read_document(file, PlanFile, f"prepare into another -o; the finished shards in {out} stay readable")
    except FileNotFoundError as error:
        raise UniclError(f"{file}: no such file", f"check that {out} is a corpus which `unicl prepare` made") from error


def format_versions(versions: Mapping[str, str]) -> str:
    """Return versions as one text, such as "pyarrow 26.0.1, pillow 13.0.0"."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
