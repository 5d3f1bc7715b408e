"""Files that are lists: their suffixes, those in a folder, and what to do with a file that is not one."""

from pathlib import Path

from unicl_cli.data.pictures import SUFFIXES
from unicl_cli.errors import UniclError

SURE_LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""File name suffixes of lists that are nothing else."""
LISTS = (*SURE_LISTS, ".json", ".txt", ".token", ".lst")
"""File name suffixes of lists."""
_TABLES = (".xlsx", ".xls", ".ods")
_PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def is_list(path: Path) -> bool:
    """Return whether a file's name ends as those of lists do."""
    return path.suffix.lower() in LISTS


def find_lists(folder: Path) -> list[Path]:
    """Return the lists in a folder, else those in its subfolders, ``metadata.csv`` and the like first."""
    for pattern in ("*", "*/*"):
        found = [file for file in folder.glob(pattern) if file.suffix.lower() in SURE_LISTS and file.is_file()]
        if found:
            return sorted(found, key=lambda file: (not file.stem.startswith("metadata"), str(file)))
    return []


def is_tar_pattern(text: str) -> bool:
    """Return whether a text names several tars: ``shards/{00000..00012}.tar``, ``shards/*.tar``."""
    return text.endswith(".tar") and any(sign in text for sign in "{*")


def find_tars(path: Path) -> dict[str, str]:
    """Return the options of the source `webdataset` for tars: a file, a pattern, a folder; nothing for another place.

    In a folder as `export-corpus` writes it, the splits are folders of tars, and the captions are in the JSON.
    """
    if not path.is_dir():
        return {"path": str(path)} if is_tar_pattern(str(path)) or (path.suffix == ".tar" and path.is_file()) else {}
    if any(path.glob("*.tar")) and not any(path.glob("*_stats.json")):
        return {"path": str(path)}
    splits = {"path": "train", "val": "val", "test": "test"}
    found = {option: str(path / split) for option, split in splits.items() if any((path / split).glob("*.tar"))}
    if "path" not in found:
        return {}
    return found | ({"caption": "json:texts"} if (path / "export.json").is_file() else {})


def webdataset(path: Path) -> str:
    """Return the source that reads tars of WebDataset, or a folder of them."""
    return f"'webdataset?path={path}'"


def not_a_list_error(path: Path) -> UniclError:
    """Return the error for a file that no reader opens, with the way to read what is in it."""
    suffix = path.suffix.lower()
    if suffix == ".tar" or path.is_dir():
        return UniclError(f"{path}: tars, which the plugin unicl-webdataset reads", "pip install unicl-webdataset")
    if suffix in _PACKED:
        return UniclError(f"{path}: not a supported list", "unpack it first")
    if suffix in _TABLES:
        return UniclError(f"{path}: not a supported list", "save it as CSV in UTF-8")
    if suffix[1:] in SUFFIXES:
        return UniclError(f"{path}: an image, not a list", f"use its folder as the source: {path.parent}")
    return UniclError(
        f"{path}: not a supported list",
        f"write a list with the columns image,label or image,caption in one of these formats: {', '.join(LISTS)}",
    )
