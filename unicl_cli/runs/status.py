"""The state of run directories, including unfinished, lost and damaged ones."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicl_cli.core.checkpoint_files import list_folders, step_of
from unicl_cli.errors import UniclError
from unicl_cli.runs.documents import Status, ValidationLine, drop_unset
from unicl_cli.runs.folder import CHECKPOINTS, META, METRICS, RECIPE, RESOLVED, STATUS, VALIDATIONS
from unicl_cli.runs.validations import best_of
from unicl_cli.storage.documents import read_document
from unicl_cli.storage.json_lines import Line, MetricLine, read_lines

LOST_SECONDS = 120
REWRITTEN = "run the unicl train command of this run again: it rewrites the file and continues"
FILES = (STATUS, RESOLVED, RECIPE, META)
"""A folder with one of these files is a run."""


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is a run directory."""
    return any((folder / name).is_file() for name in FILES)


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the summary of each run in ``folder``; the most recently active one comes last."""
    if not folder.is_dir():
        raise UniclError(f"{folder}: no such directory", "give the directory that holds your runs: unicl runs ls DIR")
    found = [summarize_run(path) for path in sorted(folder.iterdir()) if path.is_dir() and is_run(path)]
    if not found and is_run(folder):
        found = [summarize_run(folder)]
    return sorted(found, key=lambda run: -run["age_s"])


def summarize_run(run: Path) -> dict[str, Any]:
    """Return one line of the list; for a damaged run, its state and the reason."""
    try:
        status = read_status(run)
    except UniclError as error:
        states = {"damaged": STATUS, "model": META}
        state = next((word for word, file in states.items() if (run / file).exists()), "not begun")
        return {"run": str(run), "state": state, "age_s": seconds_since_change(run), "reason": error.message}
    metric, best = best_of(read_validations(run)) or (None, None)
    kept = {key: status.get(key) for key in ("step", "steps", "world", "eta_s", "img_s", "last_loss")}
    old = max(0.0, time.time() - status["updated"])
    return {"run": str(run), "state": status["state"], **kept, "best_metric": metric, "best": best, "age_s": old}


def seconds_since_change(run: Path) -> float:
    """Return the seconds since something in the folder was changed."""
    return max(0.0, time.time() - max(path.stat().st_mtime for path in (run, *run.iterdir()) if path.exists()))


def read_status(run: Path) -> dict[str, Any]:
    """Read ``status.json``; a running state whose process is gone becomes ``lost``. UniclError if it is damaged."""
    path = run / STATUS
    if not run.is_dir():
        raise UniclError(f"{run}: no such run directory", "list the runs with unicl runs ls")
    try:
        status = drop_unset(read_document(path, Status, REWRITTEN))
    except FileNotFoundError as error:
        if not is_run(run):
            raise UniclError(f"{run}: not a run directory", "list the runs with unicl runs ls") from error
        if (run / META).is_file():
            raise UniclError(f"{run}: holds a model but no training", "run unicl inspect on it") from error
        hint = "run its unicl train command again"
        raise UniclError(f"{run}: has no status.json: the training never started", hint) from error
    if status["state"] == "running" and is_lost(status):
        status["state"] = "lost"
        # status.json is written every few seconds only
        status["step"] = max(status["step"], newest_step(run, status["steps"]))
    return status


def newest_step(run: Path, most: int) -> int:
    """Return the step of the newest checkpoint by name, whole or not, up to step ``most``; 0 if there is none."""
    found = map(step_of, list_folders(run / CHECKPOINTS))
    return max((step for step in found if step <= most), default=0)


def is_lost(status: Mapping[str, Any]) -> bool:
    """Return whether a run has been silent for two minutes, or its process on this machine is gone."""
    if time.time() - status["updated"] > LOST_SECONDS:
        return True
    if status.get("host") != socket.gethostname() or os.name == "nt":
        return False
    try:
        os.kill(status["pid"], 0)
    except (ProcessLookupError, KeyError):
        return True
    except PermissionError:
        return False
    return False


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the sound lines of ``metrics.jsonl``, one mapping for each."""
    return _read_log(run / METRICS, MetricLine)


def read_validations(run: Path) -> list[dict[str, Any]]:
    """Read the validations of a run, one mapping for each."""
    return _read_log(run / VALIDATIONS, ValidationLine)


def _read_log(path: Path, model: type[Line]) -> list[dict[str, Any]]:
    return [line.values for line in read_lines(path, model)] if path.is_file() else []
