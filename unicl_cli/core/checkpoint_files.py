"""A checkpoint folder on disk: its file names, the pointers to it, and the check that it is whole; without torch."""

import hashlib
import mmap
import os
import re
import stat
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from unicl_cli.errors import UniclError
from unicl_cli.storage.documents import Document, Natural, StepCount, check_progress, load_facts, read_document
from unicl_cli.storage.files import discard, is_leftover, read_regular, remove_leftovers

MODEL, EMA, OPTIM, TRAINER = "model.safetensors", "ema.safetensors", "optim.safetensors", "trainer.json"
"""The files of a checkpoint; ``trainer.json`` is written last and names the others."""
FILES = frozenset((MODEL, EMA, OPTIM, TRAINER))
LATEST, BEST = "latest", "best"
"""Files beside the checkpoints that name one of them."""
_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})", re.ASCII)
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
    steps: StepCount | None = None
    files: Annotated[dict[str, Annotated[tuple[Natural, str], Field(strict=False)]], AfterValidator(_check_listing)]

    @model_validator(mode="after")
    def _check_progress(self) -> Self:
        check_progress(self.step, self.steps)
        return self


def folder_of(root: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return root / f"step-{step:08d}"


def list_folders(root: Path) -> list[Path]:
    """List the checkpoint folders under ``root``, whole or not, from the lowest step to the highest.

    A link to a checkpoint that was moved counts; copies under other names, archives and other files do not.
    """
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted((path for path in found if any((path / name).is_file() for name in FILES)), key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint folder; 0 if it names none."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else 0


def is_own(folder: Path) -> bool:
    """Return whether a checkpoint folder is not a link and holds nothing but what unicl wrote."""
    try:
        return not folder.is_symlink() and all(
            not path.is_symlink() and (path.name in FILES or is_leftover(path)) for path in folder.iterdir()
        )
    except OSError:
        return False


def read_pointer(path: Path) -> str:
    """Return the name of the checkpoint in ``latest`` or ``best``; an empty string if the file names none."""
    try:
        name = read_regular(path, 1000).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return name if _NAME.fullmatch(name) else ""


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
    if _NAME.fullmatch(folder.name) and step_of(folder) != facts.step:
        raise UniclError(f"{folder / TRAINER}: damaged: says step {facts.step}", _HINT)
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
    newer = [folder for folder in list_folders(root) if taken is None or step_of(folder) > step_of(taken)]
    return [folder for folder in newer if not is_whole(folder)]


def read_facts(folder: Path, model: type[CheckpointFacts] = CheckpointFacts) -> dict[str, Any]:
    """Read ``trainer.json`` of a checkpoint. UniclError if it is damaged."""
    return load_facts(folder / TRAINER, model, _HINT)


def prune(root: Path, keep: int, keep_every: int | None = None) -> list[str]:
    """Delete all but the newest ``keep`` checkpoints, and the unfinished files of killed runs; return warnings.

    Keep what ``latest`` or ``best`` names, and every step that is a multiple of ``keep_every``. A link, and a
    checkpoint that also holds other files, is neither deleted nor counted.
    """
    remove_leftovers(root)
    named = {read_pointer(root / name) for name in (LATEST, BEST)}
    real = [folder for folder in list_folders(root) if not folder.is_symlink()]
    own = [folder for folder in real if is_own(folder)]
    first_kept = step_of(own[-keep:][0]) if own else 0
    foreign = [folder for folder in real if folder not in own and step_of(folder) < first_kept]
    old = [folder for folder in own[:-keep] if folder.name not in named and not _is_lasting(folder, keep_every)]
    return delete(old) + [f"{folder}: not deleted: it holds files that unicl did not write" for folder in foreign]


def _is_lasting(folder: Path, keep_every: int | None) -> bool:
    return keep_every is not None and step_of(folder) > 0 and step_of(folder) % keep_every == 0


def delete(folders: list[Path]) -> list[str]:
    """Delete checkpoints of unicl; return a warning for each that cannot be deleted: this ends no training."""
    failed: list[str] = []
    for folder in folders:
        try:
            discard(folder)
        except OSError as error:
            failed.append(f"{folder}: cannot be deleted: {error.strerror or error}")
    return failed


def clear_place(target: Path) -> None:
    """Make the name ``target`` free for a checkpoint: delete one of unicl's own, move anything else aside."""
    if is_own(target):
        discard(target)
    elif os.path.lexists(target):
        target.rename(target.with_name(f"{target.name}.aside-{uuid.uuid4().hex[:8]}"))
