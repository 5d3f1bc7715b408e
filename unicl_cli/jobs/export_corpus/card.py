"""The card (README.md) of a repository of the `datasets` library: its features, splits, sizes and what they mean."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, cast

import yaml

from unicl_cli.data.corpus import Corpus
from unicl_cli.errors import escape_control
from unicl_cli.jobs.export_corpus.plan import Written

SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
         (1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"))  # fmt: skip
"""Words of the hub for numbers of rows below each bound."""
MEANINGS = {
    "image": "the image as the corpus stores it",
    "texts": "its captions; several are possible, and none",
    "label": "its class; -1 without one, or with several",
    "labels": "all its classes",
    "annotated": "the groups of classes that it was annotated for",
    "audio": 'a WAV, FLAC or OGG file; `cast_column("audio", Audio())` decodes it',
    "depth": "a depth map of the size of the image",
    "thermal": "a thermal image of the size of the image",
    "imu": "an NPY or CSV file of inertial measurements, six columns",
    "key": "a name that no other row has",
    "source": "the source that it was prepared from",
    "url": "the address that the image came from",
    "width": "of the upright image, in pixels",
    "height": "of the upright image, in pixels",
    "sha256": "of the file that the image was prepared from",
}


class CardColumn(Protocol):
    """A column as the card describes it."""

    @property
    def name(self) -> str: ...
    @property
    def feature(self) -> Mapping[str, Any]: ...
    @property
    def is_class(self) -> bool: ...


def write_card(
    corpus: Corpus,
    columns: Sequence[CardColumn],
    class_lines: Sequence[str],
    licence: str,
    written: Sequence[Written],
    names: Mapping[str, str],
) -> str:
    """Return the text of the card; `load_dataset` takes the class names and the splits from its first part."""
    rows = sum(item.rows for item in written)
    of_splits = {names[split]: [w for w in written if w.split == split] for split in {w.split: 0 for w in written}}
    facts: dict[str, Any] = {
        "license": licence,
        "pretty_name": corpus.name,
        "size_categories": [next((words for bound, words in SIZES if rows < bound), "n>10B")],
        "tags": ["image", "unicl"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in of_splits],
            }
        ],
        "dataset_info": _describe_info(columns, class_lines, of_splits),
    }
    front = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=10_000)
    return (
        f"---\n{front}---\n\n"
        + "\n".join(_body(corpus, columns, [split for split in corpus.splits if names.get(split) in of_splits]))
        + "\n"
    )


def _describe_info(
    columns: Sequence[CardColumn], class_lines: Sequence[str], of_splits: Mapping[str, Sequence[Written]]
) -> dict[str, Any]:
    """Return the features, and the sizes of the splits, in the form of the hub."""
    from datasets import ClassLabel, DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    features = Features.from_dict({column.name: dict(column.feature) for column in columns})
    for column in columns:
        if column.is_class:
            label = ClassLabel(names=list(class_lines))
            features[column.name] = label if column.feature["_type"] == "Value" else type(features[column.name])(label)
    splits = SplitDict()
    for name, items in of_splits.items():
        size = sum(item.counts["arrow_bytes"] for item in items)
        splits.add(SplitInfo(name, size, sum(item.rows for item in items)))
    sizes = [item for items in of_splits.values() for item in items]
    info = DatasetInfo(
        features=features,
        splits=splits,
        download_size=sum(item.bytes for item in sizes),
        dataset_size=sum(item.counts["arrow_bytes"] for item in sizes),
    )
    card = DatasetCardData()
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    return cast("dict[str, Any]", card["dataset_info"])


def _body(corpus: Corpus, columns: Sequence[CardColumn], splits: Collection[str]) -> list[str]:
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for shard in corpus.manifest.shards:
        if shard.split in splits:
            kinds.setdefault((shard.source, shard.kind), Counter())[shard.split] += shard.rows
    return [
        f"# {_plain(corpus.name)}",
        "",
        "Images with captions and labels, prepared with `unicl` and written by `unicl export-corpus`.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'data = load_dataset("ORG/NAME")  # or the folder of this file',
        "```",
        "",
        "## Columns",
        "",
        *[f"- `{c.name}`: {MEANINGS.get(c.name, 'a file of this kind')}" for c in columns],
        "",
        "## Rows",
        "",
        f"| source | kind | {' | '.join(splits)} |",
        f"|---|---|{'---|' * len(splits)}",
        *[
            f"| {_plain(source)} | {kind} | {' | '.join(f'{counts[split]:,}' for split in splits)} |"
            for (source, kind), counts in kinds.items()
        ],
    ]


def _plain(text: str) -> str:
    """Return a name for a Markdown page: on one line, and none of its signs mean anything."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>()#+!|&" else sign for sign in escape_control(text))
