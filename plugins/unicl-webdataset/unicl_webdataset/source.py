"""The data source of WebDataset tars: samples as rows, and the image of a row."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from unicl_cli.api import (
    NO_LABEL,
    ClassName,
    Extent,
    Row,
    Spool,
    UniclError,
    match_labels,
    read_class_file,
    read_extent,
    read_whole_numbers,
    spool_rows,
)
from unicl_webdataset.shards import Sample, check_size, samples_of, shards_of

NAMES = "classnames.txt"
MAX_FIELD = 10_000_000
"""Maximum number of bytes of a caption, a label or a JSON document."""
MAX_LABEL = 1000
"""Maximum number of letters or digits of a label, as in lists; Python converts no number of more than 4,300."""
MAX_STATUS = 60
SUCCESS = "success"
"""The status of the samples that img2dataset could download."""
_NOTHING = object()


class Fields(NamedTuple):
    """The members of a sample to read: ``image`` endings separated by ``;``, others an ending or ``json:FIELD``."""

    image: str
    caption: str
    label: str


class Found(NamedTuple):
    """A sample with its texts and labels read; ``labels`` is None where the sample says nothing of them."""

    key: str
    ref: str
    texts: tuple[str, ...]
    labels: tuple[str | int, ...] | None


class WebDataset:
    """The source: ``shards`` maps a split to its pattern.

    The first call of ``rows`` or ``classes`` lists everything; ``read`` needs only the row, so workers list nothing.
    """

    def __init__(
        self,
        shards: dict[str, str],
        kind: str,
        fields: Fields,
        classes: str | None,
        first: int | None,
        *,
        sets: bool = False,
    ) -> None:
        self.patterns, self.kind, self.fields, self.names_file, self.first = shards, kind, fields, classes, first
        self.sets = sets
        self.ignored: Counter[str] = Counter()

    @property
    def splits(self) -> Sequence[str]:
        return list(self.patterns)

    @cached_property
    def shards(self) -> dict[str, list[Path]]:
        return {split: shards_of(pattern) for split, pattern in self.patterns.items()}

    @cached_property
    def found(self) -> dict[str, Sequence[Found]]:
        """Samples of each split that have an image."""
        top = os.path.commonpath([shard.parent for shards in self.shards.values() for shard in shards])
        return {
            split: Spool[Found](tuple, Found._make).extend(
                item for shard in shards for item in self._samples(shard, Path(os.path.relpath(shard, top)))
            )
            for split, shards in self.shards.items()
        }

    @cached_property
    def templates(self) -> tuple[str, ...] | str:
        """Templates of CLIP_benchmark's file beside the shards (written with {c}), if there is one."""
        beside = self._beside("zeroshot_classification_templates.txt")
        return tuple(line for line in _read_text(beside).splitlines() if line.strip()) if beside else "clip80"

    @cached_property
    def _counts(self) -> Counter[str]:
        """Samples by label."""
        found = (item for items in self.found.values() for item in items)
        return Counter(str(label) for item in found for label in item.labels or ())

    @cached_property
    def whole(self) -> Mapping[str, str]:
        """Label as a float -> as the integer that it is, if all labels are whole numbers."""
        return read_whole_numbers(self._counts)

    @property
    def classes(self) -> tuple[ClassName, ...]:
        return self._labelled[0] if self.kind == "labels" else ()

    @cached_property
    def _labelled(self) -> tuple[tuple[ClassName, ...], Mapping[str, int]]:
        """The classes, and label -> class number."""
        labels = {self.whole.get(label, label) for label in self._counts} - {str(NO_LABEL)}
        if not labels:
            self._refuse("label", self.fields.label)
        numeric = all(label.isdecimal() for label in labels)
        file = Path(self.names_file) if self.names_file else self._beside(NAMES)
        if file is not None:
            names = read_class_file(str(file))
            counted = numeric and not names.has_ids and not self.names_file  # CLIP_benchmark's file counts from 0
            classes, numbers = match_labels(names, labels, 0 if counted else self.first)
            if wrong := sorted(labels - numbers.keys()):
                raise UniclError(
                    f"webdataset: label {wrong[0]} is not in {file} ({len(classes)} names)",
                    "use labels that are ids or names in the file, or line numbers",
                )
            return classes, numbers
        if numbered := sorted(int(label) for label in labels if label.isdecimal()):
            raise UniclError(
                f"webdataset: labels are numbers ({numbered[0]} … {numbered[-1]}), but no file names the classes",
                f"set classes=FILE with one name per line, or put {NAMES} beside the shards",
            )
        ordered = sorted(labels)
        classes = tuple(ClassName(name, (name.replace("_", " "),)) for name in ordered)
        return classes, {name: number for number, name in enumerate(ordered)}

    @property
    def notes(self) -> list[str]:
        """Notes for ``prepare`` on members and samples that are skipped."""
        notes = [f"webdataset: {count} {what} in the tars are skipped" for what, count in self.ignored.items()]
        if self.whole:
            floats = sum(self._counts[label] for label in self.whole)
            notes.append(f"webdataset: labels written as floats are taken as whole numbers: {floats:,}")
        return notes

    def rows(self, split: str) -> Sequence[Row]:
        numbers = self._labelled[1] if self.kind == "labels" else {}
        if self.kind == "captions" and not any(item.texts for items in self.found.values() for item in items):
            self._refuse("caption", self.fields.caption)
        return spool_rows(self._row(item, numbers) for item in self.found[split])

    def read(self, row: Row) -> dict[str, bytes]:
        return {"image": read_extent(self.extent(row))}

    def extent(self, row: Row) -> Extent:
        """Return the place of the image in its tar."""
        shard, offset, size = _place_of(row).rsplit(":", 2)
        return Extent(shard, int(offset), int(size))

    def stamp(self, row: Row) -> int:
        """Return the size of the shard, which shows an edit since the plan was made; -1 if it is gone."""
        try:
            return Path(_place_of(row).rsplit(":", 2)[0]).stat().st_size
        except OSError:
            return -1

    def origin(self, row: Row) -> str | None:
        """Return the address that the image came from, as the JSON of its sample says; None if it does not."""
        return row.ref.partition("\t")[2] or None

    def _beside(self, name: str) -> Path | None:
        folders = {shard.parent: None for shards in self.shards.values() for shard in shards}
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    def _refuse(self, what: str, where: str) -> NoReturn:
        """Raise UniclError: no sample has this field; the hint lists the members of the first sample."""
        shard = next(iter(self.shards.values()))[0]
        first = next(iter(samples_of(shard, Counter())), None)
        raise UniclError(
            f"webdataset: no sample has a {what} at '{where}'",
            f"set {what}=ENDING or {what}=json:FIELD; "
            f"the first sample of {shard} has {', '.join(first.members) if first else 'nothing'}",
        )

    def _row(self, item: Found, numbers: Mapping[str, int]) -> Row:
        captions = () if self.kind == "images" else item.texts
        if self.kind != "labels" or item.labels is None:
            return Row(item.key, item.ref, captions, NO_LABEL)
        texts = (self.whole.get(str(label), str(label)) for label in item.labels)
        labels = tuple(sorted({numbers[text] for text in texts if text != str(NO_LABEL)}))
        if len(labels) == 1:
            return Row(item.key, item.ref, captions, labels[0])
        return Row(item.key, item.ref, captions, NO_LABEL, labels, None if labels or item.labels else ("",))

    def _samples(self, shard: Path, name: Path) -> Iterator[Found]:
        samples = samples_of(shard, self.ignored)
        check_size(shard, len(samples))
        endings = [ending.strip().lower() for ending in self.fields.image.split(";")]
        for sample in samples:
            image = next((sample.members[ending] for ending in endings if ending in sample.members), None)
            if image is None:
                self.ignored["samples without an image"] += 1
                continue
            about = _read_about(shard, sample)
            if about.get("status", SUCCESS) != SUCCESS:
                self.ignored[f"samples whose status is {str(about['status'])[:MAX_STATUS]}"] += 1
                continue
            key = f"{name.with_suffix('').as_posix()}/{sample.key}"
            url = about.get("url")
            ref = f"{shard}:{image.offset}:{image.size}" + (f"\t{url}" if isinstance(url, str) else "")
            yield Found(key, ref, self._texts(shard, sample), self._labels(shard, sample))

    def _texts(self, shard: Path, sample: Sample) -> tuple[str, ...]:
        if self.kind == "images":
            return ()
        value = _read_field(shard, sample, self.fields.caption)
        texts = value if isinstance(value, list) else [] if value is _NOTHING else [value]
        return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())

    def _labels(self, shard: Path, sample: Sample) -> tuple[str | int, ...] | None:
        """Return the labels of a sample; None if it says nothing of them, and () for an empty list."""
        if self.kind != "labels":
            return None
        value = _read_field(shard, sample, self.fields.label)
        if not isinstance(value, list):
            label = _read_label(shard, sample, value)
            return None if label is None else (label,)
        if not self.sets:
            raise UniclError(
                f"webdataset: {shard}: label of {sample.key} is a list", "add sets=true: it takes all labels of a list"
            )
        found = [label for item in value if (label := _read_label(shard, sample, item)) is not None]
        labels = tuple(dict.fromkeys(found))
        if len(labels) < len(found) and set(labels) <= {0, 1}:
            raise UniclError(
                f"webdataset: {shard}: label of {sample.key} has a mark for each of {len(found)} classes",
                "write the names or numbers of its classes",
            )
        if len(labels) < len(found):
            self.ignored["labels that a sample has twice"] += len(found) - len(labels)
        return None if value and not labels else labels


def _read_label(shard: Path, sample: Sample, value: Any) -> str | int | None:
    """Return one label, a name or a number; None for nothing or -1."""
    if isinstance(value, str):
        value = value.strip()
        if len(value) > MAX_LABEL:
            raise UniclError(
                f"webdataset: {shard}: label of {sample.key} has {len(value):,} letters (limit {MAX_LABEL:,})",
                "name the member with the label: label=ENDING or label=json:FIELD",
            )
        value = int(value) if re.fullmatch(r"-?\d+", value) else value or None
    if value is _NOTHING or value is None or value == NO_LABEL or value != value:  # NaN
        return None
    if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UniclError(f"webdataset: {shard}: label of {sample.key} is {value!r}", "use numbers or names as labels")


def _read_field(shard: Path, sample: Sample, where: str) -> Any:
    """Read ``where``: the text of a member, or a value of its JSON; ``_NOTHING`` if there is none."""
    ending, _, field = where.partition(":")
    member = sample.members.get(ending.lower())
    if member is None:
        return _NOTHING
    if member.size > MAX_FIELD:
        raise UniclError(
            f"webdataset: {shard}: {sample.key}.{ending} has {member.size:,} bytes", "name the member with the text"
        )
    data = read_extent(Extent(str(shard), member.offset, member.size))
    if not field:
        return data.decode("utf-8", "replace")
    try:
        value: Any = json.loads(data)
        return value.get(field, _NOTHING)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UniclError(f"webdataset: {shard}: {sample.key}.{ending} is not a JSON object: {error}") from error


def _place_of(row: Row) -> str:
    """Return the tar, offset and size of a row's image; its URL may follow them."""
    return row.ref.partition("\t")[0]


def _read_about(shard: Path, sample: Sample) -> dict[str, Any]:
    """Return the JSON object of a sample; empty if it has none, or one that no field is read from."""
    member = sample.members.get("json")
    if member is None or member.size > MAX_FIELD:
        return {}
    try:
        value: Any = json.loads(read_extent(Extent(str(shard), member.offset, member.size)))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UniclError(
            f"webdataset: {file} cannot be read: {error}", "use a UTF-8 text file with one entry per line"
        ) from error
