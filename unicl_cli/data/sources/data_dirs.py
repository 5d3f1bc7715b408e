"""Directories with downloaded data sets: those of `--data-dir` and UNICL_DATA."""

import hashlib
import os
from pathlib import Path

from unicl_cli.errors import UniclError


def data_dirs() -> list[Path]:
    """Return the directories, that of `--data-dir` first. Workers get them by UNICL_DATA, a path list."""
    return [Path(item).expanduser() for item in os.environ.get("UNICL_DATA", "").split(os.pathsep) if item]


def add_data_dir(directory: Path) -> None:
    """Put the directory of `--data-dir` before those of UNICL_DATA. UniclError if it does not exist."""
    if not directory.expanduser().is_dir():
        raise UniclError(
            f"--data-dir {directory}: no such directory", "give the directory that holds the downloaded files"
        )
    first = str(directory.expanduser().resolve())
    kept = [item for item in os.environ.get("UNICL_DATA", "").split(os.pathsep) if item and item != first]
    os.environ["UNICL_DATA"] = os.pathsep.join([first, *kept])


def folders_of(name: str) -> list[Path]:
    """Return the folders that files of the data set ``name`` are looked for in: its own here, then those of data."""
    here = [Path(name)] if Path(name).is_dir() else []
    return [*here, *(folder for place in data_dirs() for folder in (place, place / name))]


def find_file(name: str, under: str, path: str | None) -> tuple[Path | None, list[Path]]:
    """Find the file ``name``; return it (None if missing) and all paths that were tried.

    ``path``, the file or its directory, is the only place if given. Else the places are those of the data set
    ``under``.
    """
    if path is not None:
        given = Path(path).expanduser()
        tried = [given / name] if given.is_dir() else [given]
    else:
        tried = [place / name for place in folders_of(under)]
    return next((file for file in tried if file.is_file()), None), tried


def check_md5(file: Path, expected: str, skip: str) -> None:
    """Raise UniclError if the md5 of a file is not the published one; ``skip`` is the source that does not compare."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "md5").hexdigest()
    if found != expected:
        raise UniclError(
            f"{file}: md5 is {found}, expected {expected} (damaged, or another file)",
            f"download it again, or skip this check with '{skip}'",
        )
