"""Parquet files of data sets in the hub's layout, read in place: nothing is copied into another format.

Files of the hub are downloaded once, as they are, into the cache of `datasets`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.data.sources.folder_names import list_some
from unicl_cli.data.sources.hub import datasets_cache
from unicl_cli.data.sources.lists.parquet_reader import ParquetImages, iter_batches, open_parquet
from unicl_cli.storage.files import write_atomic

SUFFIX = ".parquet"
_OPEN_FILES = 16
"""Files that a process keeps open, with one row group of images of each in memory."""
_BATCH = 1024


class StoredSplit(NamedTuple):
    """The files of a split, Arrow or Parquet, and its features by column."""

    files: list[Path]
    features: Mapping[str, Any]


def find_parquet(path: str, config: str | None) -> dict[str, StoredSplit] | None:
    """Return the splits of a folder of Parquet files as `datasets` names them; None for files of another kind."""
    import datasets

    builder = datasets.load_dataset_builder(path, config)
    files = _list_files(builder)
    return None if files is None else _describe(builder, {split: list(map(Path, of)) for split, of in files.items()})


def fetch_parquet(name: str, config: str | None, commit: str) -> dict[str, StoredSplit] | None:
    """Return the splits of a data set on the hub, downloaded as they are; None if they are not Parquet files."""
    import datasets
    from huggingface_hub import hf_hub_download

    builder = datasets.load_dataset_builder(name, config, revision=commit)
    listed = _list_files(builder)
    if listed is None:
        return None
    folder = _folder_of(name) / commit
    start = f"hf://datasets/{name}@{commit}/"
    if not all(file.startswith(start) for of in listed.values() for file in of):
        return None
    files = {split: [file.removeprefix(start) for file in of] for split, of in listed.items()}
    for file in (file for of in files.values() for file in of):
        hf_hub_download(name, file, repo_type="dataset", revision=commit, local_dir=folder)
    write_atomic(folder / _marker(config), "")
    return _describe(builder, {split: [folder / file for file in of] for split, of in files.items()})


def note_unlisted(folder: Path, splits: Mapping[str, StoredSplit]) -> list[str]:
    """Return a note on Parquet files of a folder that none of its splits has; none for another data set."""
    listed = {file for split in splits.values() for file in split.files}
    if not all(file.suffix == SUFFIX for file in listed) or not folder.is_dir():
        return []
    others = sorted(file for file in folder.absolute().rglob(f"*{SUFFIX}") if file not in listed)
    names = [file.relative_to(folder.absolute()).as_posix() for file in others]
    what = f"{folder.name}: Parquet files that belong to no split are left out ({len(names):,})"
    return [f"{what}: {list_some(names)}"] if names else []


def find_fetched(name: str, config: str | None, revision: str | None) -> dict[str, StoredSplit] | None:
    """Return the splits that an earlier `fetch_parquet` has downloaded completely; None if there are none."""
    done = [marker.parent for marker in _folder_of(name).glob(f"*/{_marker(config)}")]
    folders = [folder for folder in done if revision in (None, folder.name)]
    if not folders:
        return None
    return find_parquet(str(max(folders, key=lambda folder: folder.stat().st_mtime)), None)


def count_rows(file: Path) -> int:
    """Return the rows of a Parquet file. UniclError if it is damaged."""
    return open_parquet(file).metadata.num_rows


def read_column(file: Path, column: str) -> Iterator[Any]:
    """Yield the values of a column, None for a file without it."""
    opened = open_parquet(file)
    if column not in opened.schema_arrow.names:  # a test split without answers
        yield from repeat(None, opened.metadata.num_rows)
        return
    for batch in iter_batches(file, opened, _BATCH, [column]):
        yield from batch.column(0).to_pylist()


@lru_cache(_OPEN_FILES)
def open_images(file: str, column: str) -> ParquetImages:
    """Return the images of a Parquet file, with one row group in memory."""
    return ParquetImages(Path(file), column, groups=1)


def _list_files(builder: Any) -> dict[str, Sequence[str]] | None:
    """Return the files of each split of a builder; None unless all are Parquet."""
    found = getattr(builder.config, "data_files", None)
    if builder.name != "parquet" or not found:
        return None
    files: dict[str, Sequence[str]] = {str(split): [str(file) for file in of] for split, of in found.items()}
    return files if all(file.endswith(SUFFIX) for of in files.values() for file in of) else None


def _describe(builder: Any, files: Mapping[str, list[Path]]) -> dict[str, StoredSplit]:
    """Return the splits with the features of the data set's README, or else of each split's own files."""
    import datasets

    def features(of: list[Path]) -> Mapping[str, Any]:
        return builder.info.features or datasets.Features.from_arrow_schema(open_parquet(of[0]).schema_arrow)

    return {split: StoredSplit([file.absolute() for file in of], features(of)) for split, of in files.items()}


def _folder_of(name: str) -> Path:
    """Return the folder of a data set's snapshots, beside what `datasets` itself has made of it."""
    return datasets_cache() / name.replace("/", "___") / "parquet" / "files"


def _marker(config: str | None) -> str:
    return f".complete-{config or 'default'}"
