"""Checks of a source's rows before anything is written: file names, keys and labels."""

from collections.abc import Iterable, Sequence
from itertools import islice

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.manifest import is_plain_name
from unicl_cli.data.sources.resolve import SourceSpec
from unicl_cli.errors import UniclError
from unicl_cli.storage.buckets import CHUNK, Buckets
from unicl_cli.storage.text_hashes import find_repeated, hash_text, hash_texts, is_among

MOST_LABELS = 1000
"""Maximum number of labels of a row."""


def check_file_names(spec: SourceSpec, splits: Iterable[str]) -> None:
    """Raise UniclError unless every split can be a folder, and the shards and markers of the source files in it."""
    for split in splits:
        if not is_plain_name(split):
            raise UniclError(
                f"{spec.src}: split name '{split}' cannot be a folder name",
                "use letters, digits, '.', '-' and '_', at least one that is not a dot",
            )
        marker = f"{split}.{spec.name}-{spec.kind}-00000-of-00000"
        if not is_plain_name(marker) or not is_plain_name(marker.removeprefix(f"{split}.")):
            raise UniclError(f"{spec.src}: '{spec.name}' cannot be a file name", "give the source a short, plain name")


def check_keys(spec: SourceSpec, raw: dict[str, Sequence[Row]]) -> None:
    """Raise UniclError for a key that two rows have, with the places of both."""
    keys = (str(row.key) for of in raw.values() for row in of)
    hashes = Buckets(1)
    while len(found := hash_texts(islice(keys, CHUNK))):
        hashes.add(found)
    doubtful = find_repeated(hashes)
    met: dict[str, str] = {}
    for split, row in ((split, row) for split, of in raw.items() for row in of) if len(doubtful) else ():
        if not is_among(hash_text(str(row.key)), doubtful):
            continue
        if first := met.get(row.key):
            raise UniclError(
                f"{spec.src}: duplicate key '{row.key}': {first} and {split} {row.ref}", "give every row its own key"
            )
        met[row.key] = f"{split} {row.ref}"


def check_labels(spec: SourceSpec, raw: dict[str, Sequence[Row]], classes: Sequence[ClassName]) -> None:
    most = len(classes)
    for rows in raw.values():
        for row in rows:
            for label in (row.label, *row.labels):
                if not _is_integer(label) or not (label == NO_LABEL or 0 <= label < most):
                    raise UniclError(
                        f"{spec.src}: row '{row.key}' has label {label}; the classes are 0 … {most - 1}",
                        f"use a label in this range, or {NO_LABEL} for no label",
                    )
            if (row.labels or row.known is not None) and (problem := _find_set_fault(row, classes)):
                raise UniclError(f"{spec.src}: row '{row.key}' {problem}", "correct the labels of this row")


def _find_set_fault(row: Row, classes: Sequence[ClassName]) -> str | None:
    """Return what is wrong with the label set of a row whose labels are in range; None if it is sound."""
    if NO_LABEL in row.labels or len(set(row.labels)) < len(row.labels):
        return "has a label twice, or no label among several"
    if row.labels and row.label not in (NO_LABEL, *row.labels):
        return f"has the label {row.label} besides its labels"
    if len(row.labels) > MOST_LABELS:
        return f"has {len(row.labels):,} labels; the limit is {MOST_LABELS:,}"
    unknown = {classes[label].group for label in row.label_set()} - set(row.known or ()) if row.known else set[str]()
    return f"has a label of group '{min(unknown)}', for which it is not annotated" if unknown else None


def _is_integer(label: object) -> bool:
    return isinstance(label, int) and not isinstance(label, bool)  # plugins may hand out anything
