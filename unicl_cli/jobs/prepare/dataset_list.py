"""The list of the data sets that `prepare` knows by name, as a table and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from unicl_cli.data.sources.catalogue import SHARDS_HUB, Dataset, known_datasets
from unicl_cli.errors import UniclError, print_line
from unicl_cli.pages.text import align_columns, terminal_width
from unicl_cli.storage.json_output import print_json

WIDTH = 80
"""Columns of the table where standard output is not a terminal."""
MILLION = 1_000_000


def list_datasets(sources: Sequence[str], *, as_json: bool) -> None:
    """Write the list to standard output. UniclError for ``sources``, which would be ignored."""
    if sources:
        raise UniclError("--list: shows all names, and takes no source", "leave out --list, or the sources")
    known = list(known_datasets().values())
    if as_json:
        print_json({"schema": "unicl/prepare-list/1", "datasets": [_describe(dataset) for dataset in known]})
        return
    for line in _format_list(known):
        print_line(line)


def _describe(dataset: Dataset) -> dict[str, Any]:
    """Return the facts of a data set without what only its reader needs, and without empty ones."""
    facts = dataset.model_dump(exclude={"reader", "layouts", "templates", "shards", "hub"}, exclude_defaults=True)
    facts["files"] = [file.model_dump(exclude_defaults=True) for file in dataset.files]
    hub = dataset.hub.name if dataset.hub else SHARDS_HUB + dataset.shards if dataset.shards else None
    return {name: value for name, value in {**facts, "hub": hub}.items() if value}


def _format_list(known: Sequence[Dataset]) -> Iterator[str]:
    corpora = [dataset for dataset in known if dataset.bring]
    suites = [dataset for dataset in known if not dataset.bring]
    header = ("name", "kind", "rows", "size", "you bring", "terms")
    yield from align_columns([header, *map(_row, corpora)], terminal_width() or WIDTH)
    yield ""
    yield "evaluation sets, as CLIP_benchmark exports them: a folder, or from the hub"
    yield "(see the terms of their makers)"
    yield from align_columns([header[:3], *(_row(dataset)[:3] for dataset in suites)])
    yield ""
    yield "use a name: unicl prepare --labels NAME --captions NAME --data-dir DIR"


def _row(dataset: Dataset) -> tuple[str, ...]:
    count = sum(dataset.rows.values()) or sum(sum(known_datasets()[name].rows.values()) for name in dataset.includes)
    about = dataset.rounded or any(known_datasets()[name].rounded for name in dataset.includes)
    shown = f"{count / 1e6:.3g} M" if count >= MILLION else f"{count:,}"
    rows = f"{'~' if about else ''}{shown}" if count else "-"
    sizes = [file.size for file in dataset.files]
    size = dataset.size or (sizes[0] if len(sizes) == 1 else "")
    return dataset.name, dataset.kind, rows, size or "-", dataset.bring, dataset.terms
