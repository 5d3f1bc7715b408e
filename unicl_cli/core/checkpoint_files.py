"""A checkpoint folder on disk: its file names, the pointers to it, and the check that it is whole; without torch."""

import hashlib
import mmap
import re
import shutil
import stat
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from unicl_cli.core.documents import Document, Natural, StepCount, load_facts, read_document
from unicl_cli.core.files import read_regular
from unicl_cli.errors import UniclError

MODEL, EMA, OPTIM, TRAINER = "model.safetensors", "ema.safetensors", "optim.safetensors", "trainer.json"
"""The files of a checkpoint; ``trainer.json`` is written last and names the others."""
LATEST, BEST = "latest", "best"
"""Files beside the checkpoints that name one of them."""
_PREFIX = "step-"
_HINT = "restore the checkpoint from a copy, or delete it to continue from the one before"


def _check_listing(files: dict[str, Any]) -> dict[str, Any]:
    if MODEL not in files:
        raise ValueError(f"has no {MODEL}")
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{name!r} is not the name of a file in this folder")
    return files


class CheckpointFacts(Document):
    """``trainer.json`` as every reader needs it: the step, and bytes and sha256 of each file beside it."""

    step: StepCount
    files: Annotated[dict[str, Annotated[tuple[Natural, str], Field(strict=False)]], AfterValidator(_check_listing)]


def folder_of(root: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return root / f"{_PREFIX}{step:08d}"


def list_folders(root: Path) -> list[Path]:
    """List the checkpoint folders under ``root``, whole or not, from the lowest step to the highest."""
    return sorted(root.glob(f"{_PREFIX}*"))


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint folder; 0 if it names none."""
    number = folder.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else 0


def read_pointer(path: Path) -> str:
    """Return the name of the checkpoint in ``latest`` or ``best``; an empty string if the file names none."""
    try:
        name = read_regular(path, 1000).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return name if re.fullmatch(rf"{_PREFIX}\d+", name) else ""


def fingerprint(path: Path) -> list[Any]:
    """Return [bytes, sha256] of a file; cached until the file changes."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(f"{path}: not a regular file")
    return [about.st_size, _hash_file(path, about.st_size, about.st_mtime_ns)]


@lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, touched: int) -> str:
    del touched
    if not size:
        return hashlib.sha256().hexdigest()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return hashlib.sha256(whole).hexdigest()  # one call, during which other threads run


def is_whole(folder: Path) -> bool:
    """Return whether every file has the size and checksum in ``trainer.json``, which is written last."""
    try:
        files = _read_listing(folder) if has_sizes(folder) else None
        return files is not None and all(fingerprint(folder / name) == list(known) for name, known in files.items())
    except (OSError, UniclError):
        return False


def has_sizes(folder: Path) -> bool:
    """Return whether ``trainer.json`` is sound and every file has the size in it; checksums are not read."""
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in _read_listing(folder).items())
    except (OSError, UniclError):
        return False


def _read_listing(folder: Path) -> dict[str, tuple[int, str]]:
    facts = read_document(folder / TRAINER, CheckpointFacts, _HINT)
    named = re.fullmatch(rf"{_PREFIX}(\d{{8,}})", folder.name)
    if named is not None and int(named[1]) != facts.step:
        raise UniclError(f"{folder / TRAINER}: damaged: is of step {facts.step}", _HINT)
    return facts.files


def newest(root: Path) -> Path | None:
    """Return the newest whole checkpoint under ``root``: the one that ``latest`` names, else the highest step."""
    named = read_pointer(root / LATEST)
    if named and is_whole(root / named):
        return root / named
    return next((folder for folder in reversed(list_folders(root)) if is_whole(folder)), None)


def list_damaged(root: Path) -> list[Path]:
    """List the checkpoints under ``root`` that `newest` skips: newer than the one it returns, but not whole."""
    taken = newest(root)
    newer = [folder for folder in list_folders(root) if taken is None or folder.name > taken.name]
    return [folder for folder in newer if not is_whole(folder)]


def read_facts(folder: Path, model: type[CheckpointFacts] = CheckpointFacts) -> dict[str, Any]:
    """Read ``trainer.json`` of a checkpoint. UniclError if it is damaged."""
    return load_facts(folder / TRAINER, model, _HINT)


def prune(root: Path, keep: int, keep_every: int | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints, and files that dead runs left half written.

    Keep what ``latest`` or ``best`` names, and every step that is a multiple of ``keep_every``.
    """
    named = {read_pointer(root / name) for name in (LATEST, BEST)}
    for old in list_folders(root)[:-keep]:
        step = step_of(old)
        lasting = keep_every is not None and step > 0 and step % keep_every == 0
        if old.name not in named and not lasting:
            shutil.rmtree(old)
    discard_parts(root)


def discard_parts(root: Path) -> None:
    """Delete half-written files and folders."""
    for part in root.glob(".tmp-*"):
        shutil.rmtree(part, ignore_errors=True)
    for part in root.glob("*.tmp"):
        part.unlink(missing_ok=True)
