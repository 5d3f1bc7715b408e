"""Where data that has a name lies on this machine: the directories of `--data-dir` and UNICL_DATA."""

import os
from pathlib import Path

from unicl_cli.errors import UniclError


def data_dirs() -> list[Path]:
    """The directories, the one of `--data-dir` first; environment UNICL_DATA, a path list, tells worker processes."""
    return [Path(item).expanduser() for item in os.environ.get("UNICL_DATA", "").split(os.pathsep) if item]


def add_data_dir(directory: Path) -> None:
    """`--data-dir DIR`: looked at before those of UNICL_DATA. UniclError if it is none."""
    if not directory.expanduser().is_dir():
        raise UniclError(f"--data-dir {directory}: no such directory", "give the one that holds the downloaded files")
    first = str(directory.expanduser().resolve())
    kept = [item for item in os.environ.get("UNICL_DATA", "").split(os.pathsep) if item and item != first]
    os.environ["UNICL_DATA"] = os.pathsep.join([first, *kept])


def find_file(name: str, under: str, path: str | None) -> tuple[Path | None, list[Path]]:
    """The file ``name`` and the places that were looked at: ``path`` (the file or its directory) alone if given,

    else DIR/name and DIR/under/name for each of ``data_dirs``.
    """
    if path is not None:
        given = Path(path).expanduser()
        tried = [given / name] if given.is_dir() else [given]
    else:
        tried = [place / name for of in data_dirs() for place in (of, of / under)]
    return next((file for file in tried if file.is_file()), None), tried
