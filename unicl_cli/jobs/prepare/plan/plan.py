"""The plan of `prepare`, fixed before the first image is written: rows, splits, order and shards."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unicl_cli.contracts import ClassName, DatasetSource, Row
from unicl_cli.core.class_groups import find_hierarchy_fault, groups_of
from unicl_cli.core.prompts import NAMED, load_templates
from unicl_cli.data.manifest import SCHEMA_VERSION, SETS_VERSION
from unicl_cli.data.pictures import ImageError, examine
from unicl_cli.data.sources.lists.lines import URL_FAULT
from unicl_cli.data.sources.lists.record import BAD_LINE
from unicl_cli.data.sources.resolve import SourceSpec, open_sources
from unicl_cli.data.text import clean, has_markup
from unicl_cli.errors import Remark, UniclError
from unicl_cli.jobs.prepare.plan.classes import (
    ClassImages,
    describe_empty_classes,
    describe_names,
    find_class_images,
    merge_classes,
)
from unicl_cli.jobs.prepare.plan.concepts import choose_by_options, read_queries
from unicl_cli.jobs.prepare.plan.duplicates import NO_DUPLICATES, Duplicates
from unicl_cli.jobs.prepare.plan.group_checks import check_groups
from unicl_cli.jobs.prepare.plan.holdout import TRAIN, Holdout, ReadSource, hold_out
from unicl_cli.jobs.prepare.plan.request import PrepareOptions
from unicl_cli.jobs.prepare.plan.row_checks import check_file_names, check_keys, check_labels
from unicl_cli.jobs.prepare.plan.rows import Rows
from unicl_cli.jobs.prepare.plan.split_notes import describe_source_splits, describe_unlearned_classes
from unicl_cli.jobs.prepare.plan.taxonomy import PlacedClasses, describe_inner_rows, place_in_taxonomy
from unicl_cli.jobs.prepare.shards.download import MEAN_BYTES, Downloads, url_of
from unicl_cli.jobs.prepare.shards.left_out import LeftOut
from unicl_cli.jobs.prepare.shards.not_in import OtherCorpus, open_others
from unicl_cli.jobs.prepare.shards.shards import VERSIONS, MediaError, media_of, stored_media
from unicl_cli.jobs.prepare.shards.units import MAX_GROUP_ROWS, MAX_UNIT_ROWS, Unit, Work, cut_into_units
from unicl_cli.pages.text import shorten

SEED = 0
_SAMPLE = 32
_OLD_URL_FAULT = "the image is a URL, but only local files can be read"
_SHOWN = 60
"""Maximum number of characters of a text in a note."""


class PlannedSource(NamedTuple):
    """An open source with its rows by split, in corpus order."""

    spec: SourceSpec
    source: DatasetSource
    rows: dict[str, Rows]
    fingerprint: str
    has_urls: bool
    """True if images of the source are to be downloaded."""


class CorpusPlan(NamedTuple):
    """The open sources, merged classes and options; computed at every start and compared with `plan.json`."""

    options: PrepareOptions
    sources: list[PlannedSource]
    classes: tuple[ClassName, ...]
    templates: tuple[str, ...] | str
    holdout: Holdout
    notes: list[str]
    images: ClassImages
    groups: tuple[str, ...] | None
    """The groups of the classes if rows have label sets, or classes a group or a parent; else None."""
    taxonomy: str | None
    """The sha256 of the taxonomy that the options name."""
    queries: str | None
    """The sha256 of the queries that the options name."""
    downloads: Downloads
    others: tuple[OtherCorpus, ...] = ()
    """The corpora of `--not-in`."""

    def document(self) -> dict[str, Any]:
        """Return the content of `plan.json`, without the units."""
        described = [
            {
                "name": planned.spec.name,
                "kind": planned.spec.kind,
                "src": planned.spec.src,
                "rows": {split: len(rows) for split, rows in planned.rows.items()},
                "fingerprint": planned.fingerprint,
            }
            for planned in self.sources
        ]
        options = asdict(self.options)
        for name in ("templates", "taxonomy", "query_list", "max_per_query", "balance", "not_in"):
            del options[name]
        taxonomy = {"src": self.options.taxonomy, "sha256": self.taxonomy}
        return {
            "schema_version": SCHEMA_VERSION if self.groups is None else SETS_VERSION,
            "versions": dict(VERSIONS),
            **options,
            "seed": None if self.options.keep_order else SEED,
            "templates": self.templates if isinstance(self.templates, str) else list(self.templates),
            "classes": hash_classes(self.classes),
            **({"taxonomy": taxonomy} if self.taxonomy else {}),
            **self._describe_choice(),
            **({"not_in": [other.record() for other in self.others]} if self.others else {}),
            **({"validation": facts} if (facts := self.holdout.facts()) else {}),
            "sources": described,
        }

    def _describe_choice(self) -> dict[str, Any]:
        """Return what rows were chosen by; nothing if all were taken, as in the plans of older corpora."""
        asked = self.options
        queries = {"src": asked.query_list, "sha256": self.queries, "most": asked.max_per_query}
        balance = {"balance": asked.balance} if asked.balance is not None else {}
        return {**({"queries": queries} if self.queries else {}), **balance}

    def units(self) -> list[Unit]:
        """Cut all rows into shards of about ``shard_mb``, with row groups of about 8 MB."""
        return [unit for planned in self.sources for unit in _cut_into_units(planned, self.options)]

    def work(self, unit: Unit, out: Path, duplicates: Duplicates = NO_DUPLICATES) -> Work:
        """Return the work of a unit; rows that stay for their duplicates inherit the duplicates' texts."""
        planned = self.find_source(unit.source)
        rows = [row._replace(texts=(*row.texts, *duplicates.texts.get(row.key, ()))) for row in self.rows_of(unit)]
        gone = {row.key: duplicates.gone[row.key] for row in rows if row.key in duplicates.gone}
        nearly = duplicates.nearly.intersection(gone)
        leaks = {key: duplicates.leaks[key] for key in gone if key in duplicates.leaks}
        near, not_in = self.options.dedup == "near", bool(self.others)
        is_raw = self.options.text == "raw"
        size, min_side = self.options.size, self.options.min_side
        fetch = self.downloads.fetch if planned.has_urls else None
        media, src = self.has_media, planned.spec.src
        hosts = self.downloads.per_host
        work = Work(unit, out, src, rows, size, is_raw, gone, min_side, media, self.groups, fetch, hosts)
        compared = fetch is not None and self.options.dedup != "off"
        return work._replace(near=near, not_in=not_in, nearly=nearly, leaks=leaks, compared=compared)

    def rows_of(self, unit: Unit) -> list[Row]:
        """Return the rows of a unit."""
        places = np.array(unit.numbers) if unit.numbers else np.arange(unit.first, unit.first + unit.rows)
        return self.find_source(unit.source).rows[unit.split].take(places)

    @property
    def has_urls(self) -> bool:
        """True if images of any source are to be downloaded."""
        return any(planned.has_urls for planned in self.sources)

    @property
    def has_media(self) -> bool:
        """True if any source names media: then all shards have the column, since readers expect one schema."""
        return any(media_of(planned.source) for planned in self.sources)

    def stored_images(self, left_out: LeftOut) -> ClassImages:
        """Return the images of the classes without the rows that are left out, by key."""
        return find_class_images(self.classes, _labelled_rows(self.sources), left_out) if left_out else self.images

    def count_set_sizes(self) -> Counter[int]:
        """Return the labelled rows by their number of labels, before any is left out."""
        labelled = _labelled_rows(self.sources)
        mapped = (of.mapping.row(row) for of in labelled for row in of.by_source())
        return Counter(len(row.label_set()) for row in mapped if row.is_labelled())

    def row_at(self, unit: Unit, number: int) -> Row:
        """Return one row of a unit, by its number in the unit."""
        at = unit.numbers[number] if unit.numbers else unit.first + number
        return self.find_source(unit.source).rows[unit.split][at]

    def source(self, name: str) -> DatasetSource:
        """Return the open source with this name in the corpus."""
        return self.find_source(name).source

    def find_source(self, name: str) -> PlannedSource:
        """Return the source with this name in the corpus, and its rows."""
        return next(planned for planned in self.sources if planned.spec.name == name)


def make_plan(
    specs: Sequence[SourceSpec],
    options: PrepareOptions,
    out: Path | None = None,
    *,
    compare: bool = True,
    downloads: Downloads = Downloads(),  # noqa: B008 - frozen
) -> CorpusPlan:
    """Open every source, merge classes, hold out validation rows, permute. UniclError for bad rows or labels.

    Images are compared by their bytes, or as an earlier command saved it in ``out``; without ``compare`` by place only.
    """
    others = open_others(options.not_in, out)
    sources = open_sources(specs)
    notes: list[str] = []
    labelled = [(item, source) for item, source in zip(specs, sources, strict=True) if item.kind == "labels"]
    merged = merge_classes([(item.name, source.classes) for item, source in labelled], notes)
    placed = place_in_taxonomy(merged, options.taxonomy, notes)
    classes = placed.classes
    notes += describe_names(classes)
    if problem := find_hierarchy_fault([(c.key, c.group, c.parent) for c in classes]):
        raise UniclError(f"classes: {problem}", "correct the groups and parents of the classes")
    ids = {c.key: number for number, c in enumerate(classes)}
    read = [_read_source(item, source, placed, ids) for item, source in zip(specs, sources, strict=True)]
    queries = read_queries(options.query_list) if options.query_list else None
    read, said = choose_by_options(read, classes, options, queries)
    notes += said
    holdout = hold_out(read, options, out, compare=compare)
    notes += holdout.notes(read)
    if holdout.moved and not compare:
        notes.append(Remark("preview: without reading the images, copies of one image may count as several"))
    planned = [_plan_source(item, of, holdout, options) for item, of in zip(specs, read, strict=True)]
    for source in sources:
        notes += getattr(source, "notes", [])  # complete only after its rows were read
    if options.text != "raw":
        notes += [note for of in read if (note := _describe_markup(of))]
    templates = _choose_templates(options.templates, [source.templates for _, source in labelled])
    notes += describe_inner_rows(placed, list(_labelled_rows(planned)))
    images = find_class_images(classes, _labelled_rows(planned))
    notes += describe_empty_classes(classes, images.empty, "classes without an image")
    rows_by_source = [of.rows for of in planned if of.spec.kind == "labels"]
    notes += describe_unlearned_classes(classes, rows_by_source, images.empty)
    notes += [
        note for item, of in zip(specs, read, strict=True) for note in describe_source_splits(item, list(of.rows))
    ]
    groups = groups_of(classes) if any(of.has_sets for of in read) else None
    found = queries.sha256 if queries else None
    return CorpusPlan(
        options, planned, classes, templates, holdout, notes, images, groups, placed.sha256, found, downloads, others
    )


def _labelled_rows(sources: Iterable[PlannedSource]) -> Iterator[Rows]:
    return (rows for of in sources if of.spec.kind == "labels" for rows in of.rows.values())


def _read_source(spec: SourceSpec, source: DatasetSource, placed: PlacedClasses, ids: Mapping[str, int]) -> ReadSource:
    raw = {split: source.rows(split) for split in source.splits}
    check_file_names(spec, raw)
    if not any(raw.values()):
        raise UniclError(f"{spec.src}: no rows", "remove this source, or check its options: unicl plugins ls datasets")
    check_keys(spec, raw)
    labelled = spec.kind == "labels"
    own = source.classes if labelled else ()
    numbers = [ids[c.key] for c in own]
    if labelled:
        check_labels(spec, raw, own)
        check_groups(spec.src, raw, own)
    has_sets = labelled and (
        any(placed.classes[number].group or placed.classes[number].parent for number in numbers)
        or any(row.labels or row.known is not None for of in raw.values() for row in of)
    )
    rows = {split: of for split, of in raw.items() if of}
    mapping = placed.mapping_of(spec.name, spec.kind, own, numbers)
    has_urls = any(url_of(source, row) is not None for of in raw.values() for row in of)
    return ReadSource(spec.name, source, mapping, rows, _fingerprint(source, raw), has_sets, has_urls)


def _plan_source(spec: SourceSpec, read: ReadSource, holdout: Holdout, options: PrepareOptions) -> PlannedSource:
    rows: dict[str, Rows] = {}
    for split, own in holdout.splits_of(read).items():
        seed = None if options.keep_order else f"{SEED}/{spec.name}/{spec.kind}/{split}"
        raw = read.rows.get(split, read.rows.get(TRAIN, ()))
        rows[split] = Rows(raw, own, read.mapping, seed=seed, limit=options.limit)
    return PlannedSource(
        spec, read.source, {split: of for split, of in rows.items() if of}, read.fingerprint, read.has_urls
    )


def _describe_markup(read: ReadSource) -> str | None:
    """Return a note on the texts of a source that lose HTML tags, with the first of them; None if there are none."""
    if read.mapping.kind == "images":
        return None
    texts = (text for rows in read.rows.values() for row in rows for text in row.texts)
    found = filter(has_markup, texts)
    first = next(found, None)
    if first is None:
        return None
    count = 1 + sum(1 for _ in found)
    before, after = (" ".join(text.split()) for text in (first, clean(first)))
    return (
        f"{read.name}: texts that lose HTML tags ({count:,}): '{shorten(before, _SHOWN)}' becomes "
        f"'{shorten(after, _SHOWN)}' (--text raw keeps them)"
    )


def _fingerprint(source: DatasetSource, raw: dict[str, Sequence[Row]]) -> str:
    """Hash every row with the size of its image file, or the bytes of sample images if the source has no files."""
    digest = hashlib.sha256(repr(media_of(source)).encode() if media_of(source) else b"")
    stamp: Callable[[Row], int] | None = getattr(source, "stamp", None)
    for split, rows in raw.items():
        for row in rows:
            text = _describe_row(split, row, stamp(row) if stamp else None)
            digest.update(text.encode("utf-8", "backslashreplace"))
        for at in range(0, len(rows), max(1, len(rows) // _SAMPLE)) if stamp is None else ():
            found = _try_to_read(source, rows[at])
            digest.update(found.get("image") or b"unreadable")
            for kind in media_of(source):
                digest.update(found.get(kind, b""))
    return digest.hexdigest()


def _describe_row(split: str, row: Row, stamp: int | None) -> str:
    """Return all that a row says, as it was before rows had label sets or media: a corpus keeps its fingerprint.

    A URL that skip_urls= leaves out is described as in versions that could not read URLs.
    """
    ref = row.ref.replace(URL_FAULT, _OLD_URL_FAULT) if row.ref.startswith(BAD_LINE) else row.ref
    sets = f", labels={row.labels!r}, known={row.known!r}" if row.labels or row.known is not None else ""
    media = f", media={row.media!r}" if row.media else ""
    text = f"Row(key={row.key!r}, ref={ref!r}, texts={row.texts!r}, label={row.label!r}{sets}{media})"
    return f"({split!r}, {text}, {stamp!r})"


def _try_to_read(source: DatasetSource, row: Row) -> Mapping[str, bytes]:
    try:
        return dict(source.read(row))
    except Exception:  # noqa: BLE001 - the same row is read again by its unit, which counts it with its reason
        return {}


def _cut_into_units(planned: PlannedSource, options: PrepareOptions) -> list[Unit]:
    mean = _mean_bytes(planned, options.size)
    unit_rows = min(MAX_UNIT_ROWS, max(64, int(options.shard_mb * 1e6 / mean)))
    if unit_rows > 256:
        unit_rows -= unit_rows % 256
    group_rows = min(MAX_GROUP_ROWS, max(4, int(8e6 / mean)))  # 32 photos, 8 MB each, would make a 16 GB window
    rows = {split: len(of) for split, of in planned.rows.items()}
    cut = cut_into_units(planned.spec.name, planned.spec.kind, rows, unit_rows=unit_rows, group_rows=group_rows)
    return list(cut)


def _mean_bytes(planned: PlannedSource, size: int | None) -> float:
    """Return the mean size of the first images in permuted order, with their media, as they will be stored."""
    rows, source = max(planned.rows.values(), key=len)[:_SAMPLE], planned.source
    if planned.has_urls:  # the plan must not depend on answers of servers
        return MEAN_BYTES if size is None else min(MEAN_BYTES, size * size / 2)
    sizes = [stored for row in rows if (stored := _stored_bytes(_try_to_read(source, row), source, size))]
    return sum(sizes) / len(sizes) if sizes else 100_000


def _stored_bytes(found: Mapping[str, bytes], source: DatasetSource, size: int | None) -> int:
    try:
        media = stored_media(found, media_of(source))
        return len(examine(found.get("image") or b"", size).data) + sum(len(item["bytes"]) for item in media)
    except (ImageError, MediaError):
        return 0  # counted by its unit


def _choose_templates(
    chosen: str | tuple[str, ...] | None, offered: Sequence[Sequence[str] | str]
) -> tuple[str, ...] | str:
    """Return the name of a known list, or the lines of a file: a corpus must not depend on the file."""
    if isinstance(chosen, tuple):
        return chosen
    if chosen is not None:
        return chosen if chosen in NAMED else load_templates(chosen)
    kinds = {t if isinstance(t, str) else tuple(t) for t in offered}
    if len(kinds) != 1:
        return "clip80"
    found = kinds.pop()
    if isinstance(found, str) and found not in NAMED:
        raise UniclError(f"templates '{found}': unknown", f"return a list, or one of {', '.join(NAMED)}")
    return found if isinstance(found, str) else load_templates(found)


def hash_classes(classes: Sequence[ClassName]) -> str:
    """Return the digest of classes that `plan.json` holds."""
    items: list[list[Any]] = [[_as_written(c.key), [_as_written(name) for name in c.names]] for c in classes]
    for item, c in zip(items, classes, strict=True):
        if c.group or c.parent:  # other corpora keep their digest
            item += [_as_written(c.group), _as_written(c.parent)]
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def _as_written(text: str) -> str:
    """Return a text as `json_bytes` writes it, so that the digest can be made from the manifest, too."""
    return text.encode("utf-8", "replace").decode()
