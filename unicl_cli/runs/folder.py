"""A run directory: the name of each file in it, and the lookup of runs and checkpoints by name."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from unicl_cli.core import checkpoint_files
from unicl_cli.errors import UniclError
from unicl_cli.recipe.layers import RESOLVED
from unicl_cli.recipe.load import load
from unicl_cli.storage import hub
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json
from unicl_cli.storage.lock import names_holder

RUNS = Path("runs")
"""The folder in which `unicl train` makes run directories."""
RECIPE, OVERRIDES = "recipe.yaml", "overrides.txt"
"""The recipe and the KEY=VALUE changes as the user gave them; every command reads ``RESOLVED`` instead."""
ENVIRONMENT = "env.json"
STATUS, METRICS, VALIDATIONS = "status.json", "metrics.jsonl", "eval.jsonl"
CLASSES, TOKENIZER = "classes.json", "tokenizer.json"
THRESHOLDS = "thresholds.json"
"""Written by `unicl eval --fit-thresholds`, not by a training."""
CHECKPOINTS, LOGS, CRASH = "checkpoints", "logs", "crash"
"""Folders."""
META = "meta.json"
"""Written last: a run that has it is finished, and the weights lie beside it."""
RUN_LOCK = "run.lock"
MODEL_SCHEMA, STATUS_SCHEMA = "unicl/model/1", "unicl/runs/1"
"""The schemas in ``META`` and ``STATUS``."""
MOST_BYTES = 256_000_000
"""The largest of the files that mark a run or a corpus."""
FAR_FUTURE = 1e11
"""Seconds since 1970 that no clock shows."""
FILES = (
    *(RECIPE, RESOLVED, OVERRIDES, ENVIRONMENT, STATUS, METRICS, VALIDATIONS, CLASSES, TOKENIZER, META, RUN_LOCK),
    *(checkpoint_files.MODEL, checkpoint_files.EMA),
    *(f"{CHECKPOINTS}/{name}" for name in (checkpoint_files.LATEST, checkpoint_files.BEST)),
)
FOLDERS = (CHECKPOINTS, LOGS, CRASH)
"""All that a training writes into its run directory."""
MODEL_VARIABLE = "UNICL_MODEL"
"""Environment variable that names the model if no option does."""
DEFAULT_MODEL = "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
"""The model if there is no run: MIT license, 151 million parameters."""


def weights_file(name: str, *, raw_weights: bool) -> Path:
    """Return the file with the weights of a run or checkpoint: their moving average if there is one and it may be."""
    folder = find_run(name)[1]
    averaged = (folder / checkpoint_files.EMA).is_file() and not raw_weights
    return folder / (checkpoint_files.EMA if averaged else checkpoint_files.MODEL)


def is_checkpoint(folder: Path) -> bool:
    """Return whether ``folder`` is a checkpoint."""
    return (folder / checkpoint_files.TRAINER).is_file()


def run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint folder belongs to."""
    return checkpoint.resolve().parent.parent


def is_marked(run: Path) -> bool:
    """Return whether unicl has begun a training or written a model here.

    The lock is the first mark, since it is written before all else. A run that was copied without its lock is known by
    any other file with what only unicl writes into it; names alone say nothing.
    """
    return (
        names_holder(run / RUN_LOCK)
        or (read_object(run / STATUS).get("schema") == STATUS_SCHEMA and "state" in read_object(run / STATUS))
        or read_object(run / META).get("schema") == MODEL_SCHEMA
        or {"versions", "platform", "threads", "command"} <= read_object(run / ENVIRONMENT).keys()
        or any(
            {"step", "recipe", "files"} <= read_object(folder / checkpoint_files.TRAINER).keys()
            for folder in checkpoint_files.list_folders(run / CHECKPOINTS)
        )
    )


def read_object(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; an empty one for anything else, which is then another program's."""
    with suppress(OSError, ValueError):
        value = parse_json(read_regular(path, MOST_BYTES))
        return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
    return {}


def last_run() -> str | None:
    """The run in ``runs/`` that finished last."""
    finished = [path.parent for path in RUNS.glob(f"*/{META}") if (path.parent / RESOLVED).is_file()]
    return str(max(finished, key=finished_at)) if finished else None


def finished_at(run: Path) -> float:
    """Return when a run finished, in seconds since 1970, as its own files say it.

    The clock of a file is the last resort: a copy, a download or an edit would make an old run the newest.
    """
    status = read_object(run / STATUS)
    times: list[Any] = [
        read_object(run / META).get("finished"),
        status.get("updated") if status.get("state") == "done" else None,
    ]
    known = [float(at) for at in times if type(at) in (int, float) and 0 < at < FAR_FUTURE]
    return known[0] if known else (run / META).stat().st_mtime


def choose_model(model: str | None) -> str:
    """Return the name of the model: ``model``, else UNICL_MODEL, the last finished run, a published one."""
    return model or os.environ.get(MODEL_VARIABLE) or last_run() or DEFAULT_MODEL


def locate_model(model: str | None) -> str:
    """Return the name of the model whose files are found, or downloaded, without torch.

    Those of open_clip's own list are only looked up when they are built: its import takes as long as torch's. Raises
    UniclError for a model that is missing.
    """
    name = choose_model(model)
    try:
        if not hub.has_form(name):
            find_run(name)
        elif not name.startswith("open_clip:"):
            hub.find_model(name)
    except UniclError as error:
        if model is None and name == DEFAULT_MODEL:  # nobody asked for this one
            raise UniclError(
                f"no --model is given, runs/ has no finished run, and {error.message}",
                "train one (unicl train RECIPE), or set --model to a run, local-dir:PATH or hf-hub:ORG/REPO",
            ) from error
        raise
    return name


def corpora_of(name: str) -> tuple[str, ...]:
    """Return the corpora in the recipe of a model, each once; a published model has none."""
    if hub.has_form(name):
        return ()
    recipe = load(str(find_run(name)[0] / RESOLVED))
    return tuple(dict.fromkeys(item.corpus for item in recipe.data.train))


def no_corpus_error(name: str) -> UniclError:
    """Return the error for a model without corpora of its own where none is named."""
    return UniclError(
        f"model {name} names no corpus to evaluate on", "name one with --data CORPUS (see `unicl prepare --help`)"
    )


def find_run(name: str) -> tuple[Path, Path]:
    """Return (run directory, folder with the weights) of a run or checkpoint directory."""
    folder = Path(name)
    if folder.name in (checkpoint_files.LATEST, checkpoint_files.BEST) and folder.is_file():
        folder = folder.parent / (checkpoint_files.read_pointer(folder) or folder.name)
    else:
        hub.check_model_name(name)
    if is_checkpoint(folder):
        return run_of(folder), folder
    if not (folder / RESOLVED).is_file():
        if (folder / hub.CONFIG).is_file():
            raise UniclError(f"model {name}: a folder in open_clip's layout", f"write local-dir:{name}")
        raise UniclError(f"{name}: neither a run nor a checkpoint directory", "give a directory that unicl train wrote")
    if (folder / META).is_file():
        return folder, folder
    newest = checkpoint_files.newest(folder / CHECKPOINTS)
    if newest is None:
        raise UniclError(f"{name}: has no whole checkpoint yet", "wait for the first one, or train again")
    return folder, newest
