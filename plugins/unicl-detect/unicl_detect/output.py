"""Small steps of the commands: what a run is, and what is printed and written."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from unicl_cli.api import CocoSet, UniclError, print_json, print_line, write_note
from unicl_detect.options import DetectSettings


def describe_run(model: str, data: CocoSet, settings: DetectSettings) -> dict[str, Any]:
    """Return all that the numbers of a run depend on, and what `detect eval` needs, as plain data."""
    own = settings.model_dump(mode="json", exclude={"log_every", "save_every", "workers"})
    found = {"model": model, "data": str(data.file), "images": str(data.folder), "annotations": data.digest}
    return {**found, "classes": list(data.classes), **own}


def run_folder(settings: str, facts: Mapping[str, Any]) -> Path:
    """Return the default directory of a run."""
    digest = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"detect-{Path(settings).stem}-{digest[:8]}"


def find_data(run: Path, facts: Mapping[str, Any], data: Path | None) -> Path:
    """Return the data to evaluate on: the folder of the training's, whose other splits lie beside it."""
    trained = Path(facts["data"])
    if data is None and trained.parent.name != "annotations":
        raise UniclError(f"{run}: was trained on the file {trained}", "name the data to evaluate on: --data FILE")
    return data or trained.parent.parent


def write_notes(lines: Sequence[str]) -> None:
    """Write lines on stderr."""
    for line in lines:
        write_note(line)


def show(document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a document: as JSON, or its plain facts as lines."""
    if as_json:
        print_json(document, 2)
        return
    for name, value in document.items():
        print_line(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
