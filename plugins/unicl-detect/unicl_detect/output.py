"""Small steps of the commands: what a run is, and what is printed and written."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from unicl_cli.api import CocoSet, UniclError, print_json, print_line, write_note, write_output
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


def tell(lines: Sequence[str]) -> None:
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


def show_figures(document: Mapping[str, Any]) -> None:
    """Print the figures of an evaluation as a table, in percent."""
    print_line(f"{document['n']:,} images, {document['objects']:,} objects, {document['detections']:,} detections")
    for kind in ("box", "mask"):
        for name, value in document.get(kind, {}).items():
            print_line(f"{kind} {name:<10} {percent(value)}")
    for entry in document["per_class"]:
        figures = "  ".join(f"{key.removesuffix('_ap')} {percent(entry[key])}" for key in entry if key.endswith("_ap"))
        print_line(f"{entry['class']:<24} {entry['n']:>7,}  {figures}")


def percent(value: float | None) -> str:
    """Return a share in percent; a dash where there is none."""
    return "    -" if value is None else f"{100 * value:5.1f}"


def write_document(file: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON into the file that the user named."""
    try:
        with write_output(file) as part:
            part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UniclError(f"-o {file}: cannot be written: {error.strerror}", "use another file") from error
