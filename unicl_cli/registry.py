"""Registry of parts by name: entry points and local files, found lazily."""

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.errors import UniclError, did_you_mean

API = 1
"""Version of the plugin interface. It grows only with breaking changes; the version before stays accepted."""

KINDS = {
    "encoders": "encoder",
    "datasets": "data set",
    "losses": "loss",
    "evaluators": "evaluator",
    "commands": "command",
}
"""Kind of part (entry-point group `unicl.KIND`) -> word for one such part in messages."""


class Entry(NamedTuple):
    """A part that can be loaded; ``dist`` is its distribution, or the path of a local file."""

    kind: str
    name: str
    dist: str | None
    version: str | None
    value: str
    load: Callable[[], Any]

    @property
    def builtin(self) -> bool:
        return self.value.startswith("unicl_cli.") and self.dist in (None, "unicl")

    @property
    def origin(self) -> str:
        return " ".join(filter(None, (self.dist, self.version))) or self.value


class ListedPart(NamedTuple):
    """One line of `unicl plugins ls`; ``state`` is ok, hidden, clash, broken or off, with the reason."""

    kind: str
    name: str
    dist: str | None
    version: str | None
    value: str
    state: str


# -- finding parts ------------------------------------------------------------------------------------------------


def _is_switched_off(name: str, dist: str | None) -> bool:
    """Return True if UNICL_NO_PLUGINS is 1 or names the part or its distribution."""
    off = os.environ.get("UNICL_NO_PLUGINS", "")
    return off == "1" or bool({name, dist} & set(off.split(",")))


def _installed_entries(kind: str, *, off: bool = False) -> list[Entry]:
    """Return the entry points of a kind that are in use, or with ``off`` those that UNICL_NO_PLUGINS switches off."""
    import importlib.metadata  # costs a tenth of `unicl --help`, which asks `may_have_commands` first

    found: dict[tuple[str, str], Entry] = {}  # an editable install can show one entry point twice
    for point in importlib.metadata.entry_points(group=f"unicl.{kind}"):
        dist = point.dist
        name, version = (dist.name, dist.version) if dist else (None, None)
        entry = Entry(kind, point.name, name, version, point.value, point.load)
        if (not entry.builtin and _is_switched_off(entry.name, entry.dist)) == off:
            found.setdefault((entry.name, entry.value), entry)
    return list(found.values())


def plugin_folders() -> dict[str, Path]:
    """Return the folders of the Python packages of installed plugins, by their distributions' names; import none."""
    found: dict[str, Path] = {}
    for entry in (entry for kind in KINDS for entry in table(kind)):
        if entry.builtin or entry.version is None:  # a local file has no version
            continue
        spec = importlib.util.find_spec(entry.value.partition(":")[0].partition(".")[0])
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found.setdefault(entry.dist or entry.value, Path(folder))
    return found


def may_have_commands() -> bool:
    """Return False if no installed distribution but unicl, and no local file, can add commands.

    It reads the entry-point files themselves, in a fraction of the time that their full metadata takes.
    """
    if local_files():
        return True
    for folder in map(Path, sys.path):
        for file in folder.glob("*.dist-info/entry_points.txt"):
            if not file.parent.name.startswith("unicl-") and "[unicl.commands]" in file.read_text("utf-8", "replace"):
                return True
    return False


def _read_local(path: Path) -> list[Entry]:
    module_name = f"unicl_local_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickling and dataclasses look up the module by name
    spec.loader.exec_module(module)
    parts = module.PARTS
    if unknown := set(parts) - set(KINDS):
        raise ValueError(f"PARTS has {sorted(unknown)}, but the kinds are {', '.join(KINDS)}")
    return [
        Entry(kind, name, str(path), None, f"{path}:{name}", lambda part=part: part)
        for kind in parts
        for name, part in parts[kind].items()
    ]


@cache
def _local_entries() -> tuple[list[Entry], dict[Path, str]]:
    """Return the parts of the local plugin files, and for each file that cannot be loaded the reason."""
    entries: list[Entry] = []
    broken: dict[Path, str] = {}
    for path in local_files():
        try:
            entries += [entry for entry in _read_local(path) if not _is_switched_off(entry.name, entry.dist)]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - shown by `plugins ls` and by every failing look-up
            broken[path] = f"{type(error).__name__}: {error}"
    return entries, broken


def local_files() -> list[Path]:
    """Return the local plugin files of this process and its workers: the path list in UNICL_PLUGINS."""
    return [Path(item) for item in os.environ.get("UNICL_PLUGINS", "").split(os.pathsep) if item]


def add_local(file: str) -> None:
    """Add the parts of ``file``, in worker processes too (`--plugin`). Raises UniclError if it cannot be loaded."""
    path = str(Path(file).resolve())
    known = [str(item) for item in local_files()]
    if path not in known:
        os.environ["UNICL_PLUGINS"] = os.pathsep.join([*known, path])
    forget()
    if reason := _local_entries()[1].get(Path(path)):
        raise UniclError(f"plugin file {file}: cannot be loaded: {reason}", 'define PARTS = {"losses": {…}} in it')


def forget() -> None:
    """Drop what is cached, so that entry points and local files are read again after a change of the environment."""
    _local_entries.cache_clear()
    table.cache_clear()


@cache
def table(kind: str) -> tuple[Entry, ...]:
    """Return every part of a kind, clashes included, built-ins first. Imports local files only."""
    local = [entry for entry in _local_entries()[0] if entry.kind == kind]
    return tuple(sorted(_installed_entries(kind) + local, key=lambda entry: (not entry.builtin, entry.name)))


def names(kind: str) -> list[str]:
    """Return the names of a kind, sorted."""
    return sorted({entry.name for entry in table(kind)})


def find(kind: str, name: str) -> Entry:
    """Return the entry of this name (`name` or `dist/name`). Raises UniclError for an unknown name and for a clash."""
    entries = table(kind)
    matches = [entry for entry in entries if entry.name == name] or [
        entry for entry in entries if f"{entry.dist}/{entry.name}" == name
    ]
    if not matches:
        raise UniclError(f"no {KINDS[kind]} '{name}'{did_you_mean(name, names(kind))}", _hint_for_unknown(kind, name))
    if len(matches) > 1 and not matches[0].builtin:
        choices = " or ".join(f"{entry.dist}/{entry.name}" for entry in matches)
        raise UniclError(f"{KINDS[kind]} '{name}': in {len(matches)} plugins", f"write {choices}")
    return matches[0]


def _hint_for_unknown(kind: str, name: str) -> str:
    if not any(entry.builtin for entry in table(kind)):
        return "reinstall unicl (pip install -e . in a checkout): its own parts are not registered"
    broken = [f"; {path} cannot be loaded: {reason}" for path, reason in _local_entries()[1].items()]
    if name.rpartition("/")[2] in {entry.name for entry in _installed_entries(kind, off=True)}:
        broken.append(f"; UNICL_NO_PLUGINS={os.environ['UNICL_NO_PLUGINS']} switches '{name}' off")
    return f"use one of {', '.join(names(kind))}{''.join(broken)}"


def _load_part(entry: Entry) -> Any:
    where = f"plugin '{entry.name}' ({entry.origin})"
    try:
        part = entry.load()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UniclError(f"{where}: cannot be loaded: {reason}", "fix, update or uninstall it") from error
    version = getattr(part, "unicl_api", API)
    if version not in (API - 1, API):
        raise UniclError(f"{where}: for plugin interface {version}, but this unicl has {API}", "update one of them")
    if entry.kind != "commands" and not _is_factory(part):
        raise UniclError(f"{where}: not a function with keyword-only options", "see docs/plugins.md for an example")
    return part


def _is_factory(part: object) -> bool:
    if not inspect.isfunction(part):
        return False
    return all(parameter.kind is parameter.KEYWORD_ONLY for parameter in inspect.signature(part).parameters.values())


def get(kind: str, name: str) -> Callable[..., Any]:
    """Import and return a part. Raises UniclError for a part that is unknown, clashes, is broken or has another API."""
    return _load_part(find(kind, name))


def list_parts(kind: str) -> list[ListedPart]:
    """Return every part of a kind with its state. Imports each, so that a broken one shows before it is used."""
    rows = [ListedPart(*entry[:5], _state_of(entry)) for entry in table(kind)]
    rows += [ListedPart(*entry[:5], "off: UNICL_NO_PLUGINS") for entry in _installed_entries(kind, off=True)]
    broken = _local_entries()[1].items()
    return rows + [ListedPart(kind, path.stem, str(path), None, str(path), f"broken: {why}") for path, why in broken]


def _state_of(entry: Entry) -> str:
    try:
        _load_part(entry)
    except UniclError as error:
        return f"broken: {error.message}"
    alike = [other for other in table(entry.kind) if other.name == entry.name]
    if entry.builtin or len(alike) == 1:
        return "ok"
    return f"{'hidden by a built-in' if alike[0].builtin else 'clash'}: write {entry.dist}/{entry.name}"
