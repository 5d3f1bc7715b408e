"""Directories with downloaded data sets: those of `--data-dir` and UNICL_DATA."""

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


def find_file(name: str, under: str, path: str | None) -> tuple[Path | None, list[Path]]:
    """Find the file ``name``; return it (None if missing) and all paths that were tried.

    ``path``, the file or its directory, is the only place if given. Else the places are DIR/name and DIR/under/name
    for each of ``data_dirs``.
    """
    if path is not None:
        given = Path(path).expanduser()
        tried = [given / name] if given.is_dir() else [given]
    else:
        tried = [place / name for of in data_dirs() for place in (of, of / under)]
    return next((file for file in tried if file.is_file()), None), tried
