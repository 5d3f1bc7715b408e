"""The settings of a run that a plugin's command trains: `settings.json`, and the check that a run has the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicl_cli.core.checkpoint_files import MODEL, newest
from unicl_cli.errors import UniclError
from unicl_cli.problems import quote_value
from unicl_cli.runs.folder import CHECKPOINTS, LOGS, RUN_LOCK, STATUS, read_object
from unicl_cli.storage.documents import Document, Plain, read_document
from unicl_cli.storage.files import write_atomic
from unicl_cli.storage.lock import check_unused, is_lock

SETTINGS = "settings.json"
"""Written when a training begins."""
OTHER_RUN = "give another --run-dir"
_HINT = "restore it from a copy, or train again into another --run-dir"


class RunSettings(Document):
    """``settings.json``: the command that trains the run, and all that its numbers depend on."""

    command: str
    settings: dict[str, Plain]


def read_settings(run: Path, command: str) -> dict[str, Any]:
    """Return the settings of a run that ``command`` trains. UniclError for a folder that is not such a run."""
    try:
        found = read_document(run / SETTINGS, RunSettings, _HINT)
    except FileNotFoundError as error:
        raise UniclError(f"{run}: not a run of unicl {command}", f"give a folder that unicl {command} wrote") from error
    if found.command != command:
        raise UniclError(f"{run}: a run of unicl {found.command}", f"give a folder that unicl {command} wrote")
    return found.settings


def check_settings(run: Path, command: str, settings: Mapping[str, Any]) -> bool:
    """Return True if the run is finished. UniclError if the folder holds other things, or a run with other settings.

    Needs no torch: a command calls it before anything slow.
    """
    if not (run / SETTINGS).exists():
        check_unused(run, OTHER_RUN, lambda path: path.name == LOGS or (path.name == RUN_LOCK and is_lock(path)))
        return False
    known, given = read_settings(run, command), json.loads(json.dumps(settings))
    changed = [key for key in {**known, **given} if known.get(key) != given.get(key)]
    if changed:
        key = changed[0]
        difference = f"{key} is {quote_value(known.get(key))} there, {quote_value(given.get(key))} here"
        raise UniclError(
            f"{run}: was trained with other settings ({difference})", f"{OTHER_RUN}, or use the same settings"
        )
    return read_object(run / STATUS).get("state") == "done" and (run / MODEL).is_file()


def write_settings(run: Path, command: str, settings: Mapping[str, Any]) -> None:
    """Write ``settings.json``."""
    document = {"schema": "unicl/settings/1", "command": command, "settings": dict(settings)}
    write_atomic(run / SETTINGS, json.dumps(document, indent=1))


def newest_weights(run: Path) -> Path:
    """Return the file with the newest weights of a run: of the finished model, else of its newest checkpoint."""
    if (run / MODEL).is_file():
        return run / MODEL
    folder = newest(run / CHECKPOINTS)
    if folder is None:
        raise UniclError(f"{run}: has no whole checkpoint yet", "wait for the first one, or train again")
    return folder / MODEL
