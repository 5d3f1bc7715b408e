"""A run directory: the name of each file in it, and the lookup of runs and checkpoints by name."""

from pathlib import Path

from unicl_cli.core import checkpoint_files, hub
from unicl_cli.errors import UniclError
from unicl_cli.recipe.layers import RESOLVED

RUNS = Path("runs")
"""The folder in which `unicl train` makes run directories."""
RECIPE, OVERRIDES = "recipe.yaml", "overrides.txt"
"""The recipe and the KEY=VALUE changes as the user gave them; every command reads ``RESOLVED`` instead."""
ENVIRONMENT = "env.json"
STATUS, METRICS, VALIDATIONS = "status.json", "metrics.jsonl", "eval.jsonl"
CLASSES, TOKENIZER = "classes.json", "tokenizer.json"
CHECKPOINTS, LOGS, CRASH = "checkpoints", "logs", "crash"
"""Folders."""
META = "meta.json"
"""Written last: a run that has it is finished, and the weights lie beside it."""
RUN_LOCK = "run.lock"


def is_checkpoint(folder: Path) -> bool:
    """Return whether ``folder`` is a checkpoint."""
    return (folder / checkpoint_files.TRAINER).is_file()


def run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint folder belongs to."""
    return checkpoint.resolve().parent.parent


def last_run() -> str | None:
    """The run in ``runs/`` that finished last."""
    finished = [path.parent for path in RUNS.glob(f"*/{META}")]
    return str(max(finished, key=lambda run: (run / META).stat().st_mtime)) if finished else None


def find_run(name: str) -> tuple[Path, Path]:
    """Return (run directory, folder with the weights) of a run or checkpoint directory."""
    hub.check_model_name(name)
    folder = Path(name)
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
