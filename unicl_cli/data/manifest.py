"""The manifest of a corpus: its model, its only reader, and the rule that names in a corpus's files follow."""

import hashlib
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, Field, model_validator

from unicl_cli.core.class_groups import find_hierarchy_fault
from unicl_cli.core.prompts import NAMED
from unicl_cli.errors import UniclError
from unicl_cli.storage.documents import MAX_BYTES, Document, check_document, explain_invalid, pause_gc
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json

MANIFEST = "manifest.json"
PLAN = "plan.json"
SCHEMA_VERSION, SETS_VERSION = 1, 2
"""Formats of a corpus: with one label per row, and with label sets or groups of classes."""
MAX_NAME = 210
"""The longest name in bytes: suffixes and that of a temporary file add 45, and file systems end at 255."""
_PLAIN = rf"(?!\.+(?:/|\Z))(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:[./]|\Z))[\w.][\w.-]{{0,{MAX_NAME - 1}}}"
_NAME = re.compile(_PLAIN, re.IGNORECASE)
_SHARD = re.compile(rf"data/{_PLAIN}/{_PLAIN}\.parquet", re.IGNORECASE)


def is_plain_name(name: str) -> bool:
    """Return True if ``name`` can be one file or folder on every system: no separator, no dots alone, no device."""
    return _NAME.fullmatch(name) is not None and len(name.encode()) <= MAX_NAME


def _check_name(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError(f"{name!r} cannot be the name of a file or folder")
    return name


def _check_shard_path(path: str) -> str:
    if _SHARD.fullmatch(path) is None:
        raise ValueError(f"{path!r} is not data/SPLIT/NAME.parquet")
    return path


def _check_templates(templates: str | list[str]) -> str | list[str]:
    if isinstance(templates, str):
        if templates not in NAMED:  # any other text would be read as a file
            raise ValueError(f"{templates!r} is not one of {', '.join(NAMED)}")
    elif not templates or not all("{}" in template or "{c}" in template for template in templates):
        raise ValueError("needs at least one template, each with a place {} for the name")
    return templates


Kind = Literal["labels", "captions", "images"]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Name = Annotated[str, AfterValidator(_check_name)]
ShardPath = Annotated[str, AfterValidator(_check_shard_path)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
SetSize = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,3})$")]
Templates = Annotated[str | list[str], AfterValidator(_check_templates)]


class Shard(Document):
    """One Parquet file: its path in the corpus, the kind of its rows, and their number in each row group."""

    file: ShardPath
    split: str
    source: str
    kind: Kind
    rows: Positive
    bytes: Positive
    sha256: Sha256
    row_groups: list[Positive]


class ManifestClass(Document):
    """A class: its number, its key, its names, of which the first is the prompt name, its group and its parent."""

    id: int
    key: str
    names: list[str] = Field(min_length=1)
    group: str = ""
    parent: str = ""


class DuplicateFacts(Document):
    """Counts of `--dedup exact`: images with several rows, rows left out, texts that moved, and differing labels."""

    groups: Count
    rows: Count
    texts: Count
    labels_differ: Count
    labels_differ_examples: list[Annotated[list[str], Field(min_length=2, max_length=2)]]


class NearFacts(DuplicateFacts):
    """The same counts of `--dedup near`, whose ``equal`` rows have the same bytes as the row that stays.

    ``flat`` images show nothing that could be compared, and ``crowded`` ones have too many candidates. ``leaks`` counts
    for each other split the training rows that are left out because it has their image, or nearly. ``also_in_train``
    counts for each of these splits the rows whose image nearly equals one that is still in ``train``.
    """

    equal: Count
    flat: Count
    crowded: Count
    leaks: dict[str, Count] = Field(default_factory=dict)
    also_in_train: dict[str, Count] = Field(default_factory=dict)


class Dedup(Document):
    """The outcome of `--dedup`: at most one of its values is set."""

    exact: DuplicateFacts | None
    near: NearFacts | None = None

    @property
    def facts(self) -> DuplicateFacts | None:
        return self.near or self.exact


class NotIn(Document):
    """A corpus of `--not-in`, by the sha256 of its manifest: rows left out because it has the same image, or nearly."""

    name: str
    src: str
    split: str | None
    checksum: Sha256
    same: Count
    near: Count


class EqualImages(Document):
    """Counts of equal images among the stored ones; see `count_equal_images`."""

    in_a_kind: Count
    in_two_kinds: Count


class Survival(Document):
    """The rows of a list of URLs, and those of them that are in the corpus: copies of other days have other ones."""

    listed: Positive
    kept: Count


class Manifest(Document):
    """The content of `manifest.json`. A fact with a default came later than the first corpora."""

    schema_version: int
    name: str
    rows: Count
    rejected: dict[str, Count]
    bytes: Count
    shards: list[Shard]
    classes: list[ManifestClass]
    class_counts: dict[Name, list[Count]]
    templates: Templates
    text_stats: dict[str, Count | str] = Field(default_factory=dict)
    dedup: Dedup = Dedup(exact=None)
    equal_pictures: EqualImages | None = None
    set_sizes: dict[SetSize, Positive] = Field(default_factory=dict)
    duplicates_of_eval: dict[str, Count] = Field(default_factory=dict)
    not_in: list[NotIn] = Field(default_factory=list)
    survival: dict[Name, Survival] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name for reports: that of a corpus made from lists of URLs has the number of its images with it."""
        survival = describe_survival({name: found.model_dump() for name, found in self.survival.items()})
        return f"{self.name} ({survival})" if survival else self.name

    @property
    def has_sets(self) -> bool:
        """True if the rows have label sets."""
        return self.schema_version == SETS_VERSION

    @property
    def most_labels(self) -> int:
        """Maximum number of labels of a row."""
        return max(map(int, self.set_sizes), default=1)

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        """Check what the shards say of themselves and of the totals. The loop is plain, for 100,000 of them."""
        rows = size = 0
        for shard in self.shards:
            if not shard.file.startswith(f"data/{shard.split}/") or sum(shard.row_groups) != shard.rows:
                raise ValueError(f"{shard.file}: its split or its number of rows contradicts its path or row groups")
            rows, size = rows + shard.rows, size + shard.bytes
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("two shards have the same file")
        if (rows, size) != (self.rows, self.bytes):
            raise ValueError(f"says {self.rows} rows in {self.bytes} bytes, but its shards have {rows} in {size}")
        if not self.classes and any(shard.kind == "labels" for shard in self.shards):
            raise ValueError("has rows with labels, but no classes")
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        for number, item in enumerate(self.classes):
            if item.id != number:
                raise ValueError(f"classes.{number}.id: is {item.id}: the classes are not in their order")
            if (item.model_extra or {}).get("prompt_name", item.names[0]) != item.names[0]:
                raise ValueError(f"classes.{number}.prompt_name: is not the first of its names")
        if len({item.key for item in self.classes}) < len(self.classes):
            raise ValueError("two classes have the same key")
        for split, counts in self.class_counts.items():
            if len(counts) != len(self.classes):
                raise ValueError(f"class_counts.{split}: has {len(counts)} classes instead of {len(self.classes)}")
        return self

    @model_validator(mode="after")
    def _check_hierarchy(self) -> Self:
        if problem := find_hierarchy_fault([(item.key, item.group, item.parent) for item in self.classes]):
            raise ValueError(problem)
        if not self.has_sets and any(item.group or item.parent for item in self.classes):
            raise ValueError(f"classes have groups or parents, but schema_version is {self.schema_version}")
        return self


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest of the corpus in ``folder``, and its sha256.

    UniclError if there is none, if it is damaged, or if it has the format of another version. No shard is looked at.
    """
    file = folder / MANIFEST
    try:
        data = read_regular(file, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        if (folder / PLAN).is_file():
            hint = "run the same `unicl prepare` command again"
            raise UniclError(f"{folder}: the corpus is unfinished", hint) from error
        hint = f"make one: unicl prepare --labels SRC -o {folder}"
        raise UniclError(f"{folder}: no corpus here", hint) from error
    except OSError as error:
        raise UniclError(f"{file}: cannot be read: {error.strerror or error}", repair_hint(folder)) from error
    with pause_gc():
        try:
            value = parse_json(data)
        except ValueError as error:
            raise UniclError(f"{file}: damaged: {explain_invalid(error)}", repair_hint(folder)) from error
        _check_version(file, value)
        return check_document(value, Manifest, file, repair_hint(folder)), hashlib.sha256(data).hexdigest()


def _check_version(file: Path, value: object) -> None:
    """Raise UniclError for the format of another version, before its content is judged by this one's."""
    version = cast("dict[str, Any]", value).get("schema_version") if isinstance(value, dict) else SCHEMA_VERSION
    if isinstance(version, int) and version not in (SCHEMA_VERSION, SETS_VERSION):
        raise UniclError(
            f"{file}: corpus format {version}, but this unicl reads {SCHEMA_VERSION} and {SETS_VERSION}",
            "prepare the corpus again with this version",
        )


def describe_survival(survival: Mapping[str, Mapping[str, int]]) -> str:
    """Return how many images of lists of URLs a corpus has, in words; "" for other corpora."""
    if not survival:
        return ""
    kept, listed = (sum(found[word] for found in survival.values()) for word in ("kept", "listed"))
    return f"{kept:,} of {listed:,} listed images"


def splits_of(shards: Collection[Shard]) -> tuple[str, ...]:
    """Return the splits that have rows: train, val, test, then the others by name."""
    met = {shard.split for shard in shards}
    usual = [split for split in ("train", "val", "test") if split in met]
    return (*usual, *sorted(met - set(usual)))


def repair_hint(folder: Path) -> str:
    """Return the hint for damaged shards."""
    return f"rebuild the damaged shards: unicl prepare --repair -o {shlex.quote(str(folder))}"
