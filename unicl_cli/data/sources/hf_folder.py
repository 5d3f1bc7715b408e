"""Checks of a data set in a folder before `datasets` reads it: its JSON and README name no file outside of it."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import yaml

from unicl_cli.data.pictures import SUFFIXES
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json

MAX_STATE = 64_000_000
"""Limit for the JSON files of a saved data set and for a README, in bytes; one of 10,000 files has 0.6 MB."""


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def is_dataset(path: Path) -> bool:
    """Return whether a directory is from `save_to_disk`, or has Parquet files in the hub's layout and no images."""
    if is_saved_dataset(path):
        return True
    parquet = any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))
    return parquet and not any(file.suffix[1:].lower() in SUFFIXES for file in islice(path.rglob("*"), 1000))


def check_folder(folder: Path) -> None:
    """Raise UniclError if a data set names files or splits outside of its folder. ValueError for bad JSON or YAML."""
    if is_saved_dataset(folder):
        _check_saved(folder)
    else:
        _check_card(folder)


def _check_saved(folder: Path) -> None:
    splits = _read_strings(folder / "dataset_dict.json", "splits")
    if not all(split not in ("", ".", "..") and "/" not in split and "\\" not in split for split in splits):
        raise UniclError(f"{folder}/dataset_dict.json: a split is outside of the folder", "save it again")
    for place in (folder / split for split in splits or ("",)):
        for name in _read_strings(place / "state.json", "_data_files"):
            if not Path(os.path.abspath(place / name)).is_relative_to(os.path.abspath(place)):  # noqa: PTH100 - keeps links
                raise UniclError(f"{place / 'state.json'}: {name[:60]} is outside of the folder", "save it again")


def _check_card(folder: Path) -> None:
    from datasets import config
    from huggingface_hub import DatasetCard

    facts: dict[str, Any] = {}
    if (card := folder / config.REPOCARD_FILENAME).is_file():
        facts |= DatasetCard(read_regular(card, MAX_STATE).decode("utf-8", "replace")).data.to_dict()
    if (card := folder / config.REPOYAML_FILENAME).is_file():
        facts |= yaml.safe_load(read_regular(card, MAX_STATE)) or {}
    for item in facts.get("configs") or ():
        for path in _texts_in([item.get("data_files"), item.get("data_dir")]):
            if "::" in path or "://" in path or os.path.isabs(path) or ".." in re.split(r"[\\/]", path):  # noqa: PTH117
                raise UniclError(
                    f"{folder}: its README names data outside of the folder: {path[:60]}",
                    "correct data_files there, or use one of the Parquet files as the source",
                )


def _texts_in(value: Any) -> Iterator[str]:
    """Yield all texts inside lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in cast("Iterable[Any]", value.values() if isinstance(value, dict) else value):
            yield from _texts_in(inner)


def _read_strings(file: Path, key: str) -> list[str]:
    """Return the texts of a list in a JSON file, or the ``filename`` of its objects; others are left to `datasets`."""
    document = parse_json(read_regular(file, MAX_STATE)) if file.is_file() else None
    values = cast("dict[str, Any]", document).get(key) if isinstance(document, dict) else None
    found = [value.get("filename") if isinstance(value, dict) else value for value in values or ()]
    return [value for value in found if isinstance(value, str)]
