"""Notes on splits that may be others than meant: sources named like one, and classes that training never sees."""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from unicl_cli.contracts import ClassName
from unicl_cli.data.sources.resolve import SourceSpec, split_options
from unicl_cli.data.sources.splits import split_of
from unicl_cli.jobs.prepare.plan.classes import describe_empty_classes
from unicl_cli.jobs.prepare.plan.rows import Rows

_TRAIN = "train"


def describe_source_splits(spec: SourceSpec, own: Sequence[str]) -> list[str]:
    """Return a note on a source of the user's that is named like a split, and whose rows are all in train.

    ``own`` are the splits that the source itself has.
    """
    base, options = split_options(spec.src)
    path = Path(base).expanduser()
    if list(own) != [_TRAIN] or "split" in options or not path.exists():
        return []
    folder = "" if path.parent.name == "dev" else path.parent.name  # where people keep their code
    names = [path.name] if path.is_dir() else [folder, *re.split(r"[\W\d_]+", path.stem)]
    split = next((split for name in reversed(names) if (split := split_of(name))), _TRAIN)
    if split == _TRAIN:
        return []
    example = f"'{spec.src}{'&' if options else '?'}split={split}'"
    return [f"{spec.name}: its name says {split}, and its rows are in train: to have them in {split}, use {example}"]


def describe_unlearned_classes(
    classes: Sequence[ClassName], labelled: Sequence[Mapping[str, Rows]], empty: Set[int]
) -> list[str]:
    """Return a note on classes with rows in other splits and none in train, if train has any; ``labelled`` by source.

    ``empty`` classes have no rows, and a class above others needs none.
    """
    parents = {c.parent for c in classes}
    training = [rows[_TRAIN] for rows in labelled if rows.get(_TRAIN)]
    if not training or all(set(rows) == {_TRAIN} for rows in labelled):
        return []
    missing = {number for number, c in enumerate(classes) if number not in empty and c.key not in parents}
    for label in _labels(training):
        missing.discard(label)
        if not missing:
            return []
    return describe_empty_classes(classes, missing, "classes with images in other splits and none in train")


def _labels(of: Sequence[Rows]) -> Iterator[int]:
    return (label for rows in of for row in rows.by_source() for label in rows.mapping.labels(row))
