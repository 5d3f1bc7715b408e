"""The output directory's `plan.json`: written once, then compared with the plan of every later command."""

import json
import re
from pathlib import Path
from typing import Any

from unicl_cli.core.files import is_leftover, write_atomic
from unicl_cli.core.lock import check_unused, is_lock
from unicl_cli.data.corpus import MANIFEST, PLAN
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare import holdout
from unicl_cli.jobs.prepare.lock import LOCK
from unicl_cli.jobs.prepare.plan import CorpusPlan, list_differences
from unicl_cli.jobs.prepare.shards import Unit, json_bytes

_REJECTS = re.compile(r".+\..+-(labels|captions|images)-.+\.jsonl")
"""The names of files in ``rejects``."""


def check_out_dir(out: Path) -> None:
    """Raise UniclError unless ``out`` is new, empty or a corpus. Nothing is written or removed."""
    if (out / PLAN).is_file():
        read_plan(out)
    else:
        check_unused(out, "choose an empty or new directory with -o", _is_beginning)


def _is_beginning(path: Path) -> bool:
    """Return whether ``path`` is what a `prepare` without a plan may have left: all its rows were left out."""
    if path.name == LOCK:
        return is_lock(path)
    if path.name == holdout.FILE:
        return holdout.is_saved(path)
    if path.name != "rejects" or path.is_symlink() or not path.is_dir():
        return False
    return all(_REJECTS.fullmatch(file.name) or is_leftover(file) for file in path.iterdir())


def agree_on_plan(plan: CorpusPlan, out: Path, *, allow_version_mix: bool) -> tuple[dict[str, Any], list[Unit]]:
    """Return the document and units of `plan.json`, after writing it if it is missing.

    UniclError if the corpus was started with another plan or other versions.
    """
    new = plan.document()
    if not (out / PLAN).is_file():
        plan.holdout.save(out)
        units = plan.units()
        new["units"] = [unit._asdict() for unit in units]
        write_atomic(out / PLAN, json_bytes(new))
        return new, units
    old = read_plan(out)
    check_same_plan(out, old, new)
    plan.holdout.save(out)
    if old["versions"] != new["versions"] and not allow_version_mix and not (out / MANIFEST).is_file():
        raise UniclError(
            f"{out}: was started with other versions ({_format(old['versions'])}; now {_format(new['versions'])})",
            "install those versions, choose another -o, or add --allow-version-mix (shards are then not reproducible)",
        )
    return old, units_of(old)


def check_same_plan(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UniclError with every difference if two documents are not the same plan."""
    if changed := list_differences(old, new):
        raise UniclError(
            f"{out}: was started with another plan; {'; '.join(changed)}",
            f"choose another directory with -o, or remove {out}",
        )


def read_plan(out: Path) -> dict[str, Any]:
    """Return the document of `plan.json`. UniclError if it cannot be read."""
    file = out / PLAN
    try:
        document = json.loads(file.read_bytes())
        units_of(document)
    except FileNotFoundError as error:
        raise UniclError(f"{file}: no such file", f"check that {out} is a corpus which `unicl prepare` made") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UniclError(
            f"{file}: is damaged", f"prepare into another -o; the finished shards in {out} stay readable"
        ) from error
    return document


def units_of(document: dict[str, Any]) -> list[Unit]:
    """Return the units that a document lists."""
    return [Unit(**unit) for unit in document["units"]]


def _format(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
