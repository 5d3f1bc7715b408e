"""The files that make up a corpus, a run or a checkpoint, which no output of a command may replace."""

import os
from collections.abc import Sequence
from pathlib import Path

from unicl_cli.core import checkpoint_files
from unicl_cli.data.manifest import MANIFEST, PLAN
from unicl_cli.runs.folder import FILES, THRESHOLDS, is_checkpoint, is_marked, read_object
from unicl_cli.storage import hub

_CORPUS_FILES = frozenset((MANIFEST, PLAN, "holdout.json", "duplicates.json"))
_CORPUS_FOLDERS = frozenset(("data", "parts", "rejects"))
_RUN_FILES = frozenset((*FILES, THRESHOLDS, hub.CONFIG, *hub.WEIGHTS))


def find_owner(file: Path) -> str | None:
    """Return what a file is part of, such as "the corpus photos"; None for a file that is the user's own.

    A link counts as the file that it leads to. Other files inside of a corpus or a run are the user's.
    """
    target = Path(os.path.realpath(file))
    for folder in target.parents:
        inside = target.relative_to(folder).parts
        if _is_corpus_part(inside) and _is_corpus(folder):
            return f"the corpus {folder}"
        if len(inside) == 1 and target.name in checkpoint_files.FILES and is_checkpoint(folder):
            return f"the checkpoint {folder}"
        if "/".join(inside) in _RUN_FILES and is_marked(folder):
            return f"the run {folder}"
    return None


def _is_corpus_part(inside: Sequence[str]) -> bool:
    return inside[0] in (_CORPUS_FILES if len(inside) == 1 else _CORPUS_FOLDERS)


def _is_corpus(folder: Path) -> bool:
    return "shards" in read_object(folder / MANIFEST) or "units" in read_object(folder / PLAN)
