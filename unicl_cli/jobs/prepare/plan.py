"""What `prepare` is going to do, fixed before the first image is read: rows, splits, order, shards."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import pyarrow as pa
from numpy.typing import NDArray

from unicl_cli import __version__
from unicl_cli.contracts import NO_LABEL, ClassName, DatasetSource, Row
from unicl_cli.core.prompts import NAMED, load_templates
from unicl_cli.core.sampler import Perm
from unicl_cli.data.pictures import PictureError, examine
from unicl_cli.data.sources.resolve import SourceSpec, open_source
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.duplicates import NO_DUPLICATES, Duplicates
from unicl_cli.jobs.prepare.rows import Adoption, Rows
from unicl_cli.jobs.prepare.shards import Unit, Work

SCHEMA_VERSION = 1
SEED = 0
HOLDOUT = 0.05
HOLDOUT_ROWS = 200
"""A source with only `train` and at least this many rows gives HOLDOUT of them to `val`, unless told otherwise."""
_SAMPLE = 32
_SPLIT = re.compile(r"[\w.][\w.-]*")


@dataclass(frozen=True)
class Options:
    """What changes the bytes of a corpus, beside its sources."""

    templates: str | tuple[str, ...] | None = None
    size: int | None = None
    min_side: int = 0
    holdout: float | None = None
    shard_mb: int = 256
    limit: int | None = None
    text: str = "clean"
    dedup: str = "off"
    keep_order: bool = False

    def __post_init__(self) -> None:
        """UniclError for a word that is none of its options."""
        for option, value, words in (
            ("--text", self.text, ("clean", "raw")),
            ("--dedup", self.dedup, ("off", "exact")),
        ):
            if value not in words:
                raise UniclError(f"{option} {value}: unknown", f"use {' or '.join(words)}")


class PlannedSource(NamedTuple):
    """A source with its rows by split, as they go into the corpus. ``held_out``: its `val` was cut from its `train`."""

    named: SourceSpec
    source: DatasetSource
    rows: dict[str, Rows]
    fingerprint: str
    held_out: bool


class CorpusPlan(NamedTuple):
    """Everything but the units is recomputed at each start and compared with what `plan.json` says."""

    options: Options
    sources: list[PlannedSource]
    classes: tuple[ClassName, ...]
    templates: tuple[str, ...] | str
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """What `plan.json` holds, without the units."""
        described = [
            {
                "name": opened.named.name,
                "kind": opened.named.kind,
                "src": opened.named.src,
                "rows": {split: len(rows) for split, rows in opened.rows.items()},
                "fingerprint": opened.fingerprint,
            }
            for opened in self.sources
        ]
        options = asdict(self.options)
        del options["templates"]
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": {"unicl": __version__, "pyarrow": pa.__version__, "pillow": PIL.__version__},
            **options,
            "seed": None if self.options.keep_order else SEED,
            "templates": self.templates if isinstance(self.templates, str) else list(self.templates),
            "classes": _digest([list(c) for c in self.classes]),
            "sources": described,
        }

    def units(self) -> list[Unit]:
        """Shards of about ``shard_mb``, in row groups of about 8 MB."""
        return [unit for opened in self.sources for unit in _cut_into_units(opened, self.options)]

    def work(self, unit: Unit, out: Path, duplicates: Duplicates = NO_DUPLICATES) -> Work:
        """A unit with its rows: those that stay for others get the others' texts."""
        opened = self.find_source(unit.source)
        rows = opened.rows[unit.split][unit.first : unit.first + unit.rows]
        rows = [row._replace(texts=(*row.texts, *duplicates.texts.get(row.key, ()))) for row in rows]
        gone = {row.key: duplicates.gone[row.key] for row in rows if row.key in duplicates.gone}
        is_raw = self.options.text == "raw"
        return Work(unit, out, opened.named.src, rows, self.options.size, is_raw, gone, self.options.min_side)

    def row_at(self, unit: Unit, number: int) -> Row:
        """One row of a unit, by its number there."""
        return self.find_source(unit.source).rows[unit.split][unit.first + number]

    def source(self, name: str) -> DatasetSource:
        return self.find_source(name).source

    def find_source(self, name: str) -> PlannedSource:
        return next(opened for opened in self.sources if opened.named.name == name)


def make_plan(named: Sequence[SourceSpec], options: Options) -> CorpusPlan:
    """Open every source, merge classes, hold rows out, permute. UniclError for anything wrong with rows or labels."""
    sources = [open_source(item.src, item.kind) for item in named]
    notes: list[str] = []
    labelled = [(item, source) for item, source in zip(named, sources, strict=True) if item.kind == "labels"]
    classes = _merge_classes([(item.name, source.classes) for item, source in labelled], notes)
    ids = {c.key: number for number, c in enumerate(classes)}
    opened = [_plan_source(item, source, ids, options, notes) for item, source in zip(named, sources, strict=True)]
    for source in sources:
        notes += getattr(source, "notes", [])  # what a source has to say once its rows are read
    templates = _choose_templates(options.templates, [source.templates for _, source in labelled])
    return CorpusPlan(options, opened, classes, templates, notes)


def list_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields in which two plans differ, as ``field: old -> new``; versions and spelling of sources aside."""
    skipped = ("versions", "units", "sources")
    said = [
        f"{k}: {_format_value(old.get(k))} -> {_format_value(new.get(k))}"
        for k in new
        if k not in skipped and old.get(k) != new[k]
    ]
    before = {(s["name"], s["kind"]): s for s in old.get("sources", [])}
    after = {(s["name"], s["kind"]): s for s in new["sources"]}
    said += [f"sources: '{name}' ({kind}) is new" for name, kind in after.keys() - before.keys()]
    said += [f"sources: '{name}' ({kind}) is gone" for name, kind in before.keys() - after.keys()]
    for at in sorted(before.keys() & after.keys()):
        changed = [field for field in ("rows", "fingerprint") if before[at][field] != after[at][field]]
        if changed:
            said.append(f"sources: '{at[0]}' ({at[1]}) has other {' and '.join(changed)}")
    return said


def _plan_source(
    named: SourceSpec, source: DatasetSource, ids: dict[str, int], options: Options, notes: list[str]
) -> PlannedSource:
    raw = {split: source.rows(split) for split in source.splits}
    for split in raw:
        if not _SPLIT.fullmatch(split):
            raise UniclError(
                f"{named.src}: split name '{split}' is no file name", "name splits with letters, digits, - and _"
            )
    if not any(raw.values()):
        raise UniclError(f"{named.src}: has no rows", "leave it out, or look at its options: unicl plugins ls datasets")
    _check_keys(named, raw)
    labelled = named.kind == "labels"
    adoption = Adoption(named.name, named.kind, tuple(ids[c.key] for c in source.classes) if labelled else ())
    if labelled:
        _check_labels(named, raw, len(adoption.classes))
    rows = {split: Rows(of, np.arange(len(of)), adoption) for split, of in raw.items() if of}
    held_out = list(rows) == ["train"] and _holdout_share(options, len(rows["train"])) > 0
    if held_out:
        rows = _split_holdout(rows["train"], _holdout_share(options, len(rows["train"])))
        notes.append(
            f"{named.name}: has no validation split: {len(rows['val'])} of {sum(map(len, rows.values()))} rows "
            f"went to 'val', chosen by a hash of their keys (--holdout 0 for none)"
        )
    rows = {split: Rows(of.raw, _permute(of.order, named, split, options), adoption) for split, of in rows.items()}
    return PlannedSource(named, source, {s: of for s, of in rows.items() if of}, _fingerprint(source, raw), held_out)


def _check_keys(named: SourceSpec, raw: dict[str, Sequence[Row]]) -> None:
    met: set[str] = set()
    for split, rows in raw.items():
        for row in rows:
            if row.key in met:
                places = [f"{s} {r.ref}" for s, of in raw.items() for r in of if r.key == row.key]
                raise UniclError(
                    f"{named.src}: key '{row.key}' stands there twice: {places[0]} and {split} {row.ref}",
                    "give each row a key of its own",
                )
            met.add(row.key)


def _check_labels(named: SourceSpec, raw: dict[str, Sequence[Row]], classes: int) -> None:
    for rows in raw.values():
        for row in rows:
            if not _is_integer(row.label) or not (row.label == NO_LABEL or 0 <= row.label < classes):
                raise UniclError(
                    f"{named.src}: row '{row.key}' has label {row.label}, classes are 0 … {classes - 1}",
                    f"{NO_LABEL} means no label",
                )


def _is_integer(label: object) -> bool:
    return isinstance(label, int) and not isinstance(label, bool)  # plugins may hand out anything


def _holdout_share(options: Options, rows: int) -> float:
    if options.holdout is None:
        return HOLDOUT if rows >= HOLDOUT_ROWS else 0
    return options.holdout


def _split_holdout(rows: Rows, share: float) -> dict[str, Rows]:
    """Rows whose key's hash falls below ``share`` go to `val`; the last image of a class stays in training."""
    labels = [rows.adoption.label(row) for row in rows.raw]
    left = Counter(labels)
    chosen = np.zeros(len(rows), np.bool_)
    for at, (row, label) in enumerate(zip(rows.raw, labels, strict=True)):
        digest = hashlib.blake2b(rows.adoption.key(row).encode("utf-8", "replace"), digest_size=7).digest()
        if int.from_bytes(digest, "big") < share * 2**56 and (label == NO_LABEL or left[label] > 1):
            chosen[at] = True
            left[label] -= 1
    parts = {"train": ~chosen, "val": chosen}
    return {split: Rows(rows.raw, np.flatnonzero(part), rows.adoption) for split, part in parts.items()}


def _permute(order: NDArray[np.int64], named: SourceSpec, split: str, options: Options) -> NDArray[np.int64]:
    """Permuted, so that a shard mixes the classes, and cut to the limit."""
    if not options.keep_order and len(order):
        order = order[Perm(len(order), f"{SEED}/{named.name}/{named.kind}/{split}")(np.arange(len(order)))]
    return order[: options.limit]


def _fingerprint(source: DatasetSource, raw: dict[str, Sequence[Row]]) -> str:
    """Every row, and of its image the size on disk, or the bytes of a sample where the source has no files."""
    digest = hashlib.sha256()
    stamp: Callable[[Row], int] | None = getattr(source, "stamp", None)
    for split, rows in raw.items():
        for row in rows:
            digest.update(repr((split, row, stamp(row) if stamp else None)).encode("utf-8", "backslashreplace"))
        for at in range(0, len(rows), max(1, len(rows) // _SAMPLE)) if stamp is None else ():
            digest.update(_try_to_read(source, rows[at]) or b"unreadable")
    return digest.hexdigest()


def _try_to_read(source: DatasetSource, row: Row) -> bytes | None:
    try:
        return source.read(row)["image"]
    except Exception:  # noqa: BLE001 - the same row is read again by its unit, which counts it with its reason
        return None


def _cut_into_units(opened: PlannedSource, options: Options) -> list[Unit]:
    mean = _mean_bytes(opened, options.size)
    unit_rows = min(8192, max(64, int(options.shard_mb * 1e6 / mean)))
    if unit_rows > 256:
        unit_rows -= unit_rows % 256
    group_rows = min(2048, max(4, int(8e6 / mean)))  # 32 photos of 8 MB a group would be 16 GB a window
    name, kind = opened.named.name, opened.named.kind
    units: list[Unit] = []
    for split, rows in opened.rows.items():
        starts = range(0, len(rows), unit_rows)
        for number, first in enumerate(starts):
            file = f"{name}-{kind}-{number:05d}-of-{len(starts):05d}"
            units.append(Unit(file, split, name, kind, first, min(unit_rows, len(rows) - first), group_rows))
    return units


def _mean_bytes(opened: PlannedSource, size: int | None) -> float:
    """Of the first images in the permuted order, as they will be stored."""
    rows = max(opened.rows.values(), key=len)[:_SAMPLE]
    sizes = [stored for row in rows if (stored := _stored_bytes(_try_to_read(opened.source, row), size))]
    return sum(sizes) / len(sizes) if sizes else 100_000


def _stored_bytes(data: bytes | None, size: int | None) -> int:
    try:
        return len(examine(data or b"", size).data)
    except PictureError:
        return 0  # counted by its unit


def _merge_classes(classes: list[tuple[str, Sequence[ClassName]]], notes: list[str]) -> tuple[ClassName, ...]:
    """The ordered union by key; names of later sources are added behind those of the first."""
    merged: dict[str, ClassName] = {}
    for name, of in classes:
        shared = [c.key for c in of if c.key in merged]
        if shared:
            notes.append(f"{name}: {len(shared)} of its {len(of)} classes were there already (same key) and are shared")
        for c in of:
            names = tuple(dict.fromkeys((*merged[c.key].names, *c.names) if c.key in merged else c.names))
            merged[c.key] = ClassName(c.key, names)
    by_name: dict[str, list[ClassName]] = {}
    for c in merged.values():
        by_name.setdefault(c.names[0].casefold(), []).append(c)
    for alike in by_name.values():
        if len(alike) > 1:
            exactly = "" if len({c.names[0] for c in alike}) == 1 else " but for its case"
            notes.append(
                f"{len(alike)} classes share the prompt name '{alike[0].names[0]}'{exactly}: "
                f"{', '.join(c.key for c in alike)}: their prompts are equal: is it one class under two ids?"
            )
    return tuple(merged.values())


def _choose_templates(
    wanted: str | tuple[str, ...] | None, offered: Sequence[Sequence[str] | str]
) -> tuple[str, ...] | str:
    """The list's name or, from a file, the list: a corpus is moved without the file."""
    if isinstance(wanted, tuple):
        return wanted
    if wanted is not None:
        return wanted if wanted in NAMED else load_templates(wanted)
    kinds = {t if isinstance(t, str) else tuple(t) for t in offered}
    return kinds.pop() if len(kinds) == 1 else "clip80"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _format_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 40 else text[:37] + "..."
