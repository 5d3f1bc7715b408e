"""The meaning of a SRC on the command line: a registered source, a folder or a list, each with its options."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from unicl_cli import binding, registry
from unicl_cli.contracts import DatasetSource
from unicl_cli.data.sources import catalogue
from unicl_cli.data.sources.data_dirs import data_dirs
from unicl_cli.data.sources.hf import HUB, is_dataset
from unicl_cli.data.sources.img2dataset import is_img2dataset
from unicl_cli.data.sources.lists.files import find_tars, is_list, is_tar_pattern, not_a_list_error
from unicl_cli.data.sources.whole_split import name_split
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.problems import PartError

WEBDATASET = "webdataset"
"""Name of the source that the plugin unicl-webdataset brings."""
KINDS = ("labels", "captions", "images")


class SourceSpec(NamedTuple):
    """One SRC of a request; its ``name`` is unique in the corpus, and the prefix of its keys."""

    name: str
    kind: str
    src: str


def open_source(src: str, kind: str) -> DatasetSource:
    """Open the source that ``src`` names; workers repeat this from the same two strings. UniclError if unknown."""
    name, written = resolve_source(src)
    there = binding.arguments("datasets", name)
    options = binding.read_options("datasets", name, written)
    if "kind" in there:  # a parameter with a default is an option, not context
        options.setdefault("kind", kind)
    whole = None if "split" in there else options.pop("split", None)
    try:
        part = binding.bind("datasets", {"name": name, **options})
    except PartError as error:
        usable = ", ".join(sorted(there.keys() - {"path"}))
        hint = f"use the options of {name}: {usable}" if usable else f"remove the options: {name} has none"
        raise UniclError(f"{src}: {error.message}", hint) from error
    source: DatasetSource = binding.make("datasets", part, {"kind": lambda: kind})
    return source if whole is None else name_split(source, whole, src)


def resolve_source(src: str) -> tuple[str, dict[str, str]]:
    """Return the registered name and options for ``src``; a path becomes ``folder``, ``table`` or ``hf``.

    A name is looked up among the sources, then as a path, then in the directories of `--data-dir` and UNICL_DATA.
    """
    base, options = split_options(src)
    if not base:
        raise UniclError(f"source '{src}': the name is empty", "name a folder, a list or a registered source")
    if base.startswith(("http://", "https://")):
        raise UniclError(f"{base}: a URL cannot be a source", "download it first, or use the hub: hf:org/name")
    if base.startswith(HUB):
        return "hf", {"path": base, **options}
    name = catalogue.ALIASES.get(base.lower(), base)
    if registered := _find_registered(name):
        return registered, options
    for place in (Path(base).expanduser(), *(of / spelled for of in data_dirs() for spelled in (base, name))):
        if found := _read_place(place):
            name, own = found
            return name, {**own, **options}
    if name in catalogue.KNOWN:
        raise catalogue.missing_error(name)
    raise _unknown_error(base)


def _read_place(place: Path) -> tuple[str, dict[str, str]] | None:
    """Return the source that reads a path, and the options that say where; None if nothing is there.

    UniclError for tars of WebDataset without the plugin that reads them.
    """
    if tars := find_tars(place):
        if _find_registered(WEBDATASET) is None:
            raise not_a_list_error(place)
        return WEBDATASET, tars
    reader = _reader_of(place)
    return (reader, {"path": str(place)}) if reader else None


def _unknown_error(base: str) -> UniclError:
    known = registry.names("datasets")
    return UniclError(
        f"{base}: no such folder, list or source{did_you_mean(base, known)}",
        f"check the path, or name one of: {', '.join(known)}",
    )


def _find_registered(name: str) -> str | None:
    """Return the name if a source is registered under it, bare or as ``dist/name``; else None."""
    spelled = {of for entry in registry.table("datasets") for of in (entry.name, f"{entry.dist}/{entry.name}")}
    return name if name in spelled else None


def _reader_of(path: Path) -> str | None:
    """Return the source that reads the folder or list at a path; None if nothing is there."""
    if path.is_dir():
        if (path / "plan.json").is_file() and (path / "parts").is_dir():
            raise UniclError(f"{path}: already a corpus", "use it in a recipe, or name the sources it was made from")
        if is_img2dataset(path):
            return "img2dataset"
        return "hf" if is_dataset(path) else "folder"
    if not path.exists():
        return None
    if not path.is_file():
        raise UniclError(f"{path}: not a regular file", "write the list into a file, and name that")
    if not is_list(path):
        raise not_a_list_error(path)
    return "table"


def split_options(src: str) -> tuple[str, dict[str, str]]:
    """Split ``"cap.tsv?image=file&caption=title"`` into base and options; an existing path is never split."""
    if Path(src).expanduser().exists() or "?" not in src:
        return src, {}
    base, _, query = src.rpartition("?")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UniclError(f"{src}: option '{pair}' has no value", "write options as ?key=value&key=value")
        options[key] = unquote(value)
    return base, options


def name_sources(labels: Sequence[str], captions: Sequence[str], images: Sequence[str]) -> list[SourceSpec]:
    """Give every SRC its kind and a name made from its stem; a repeated name gets ``-2``, ``-3``, …"""
    taken: set[str] = set()
    named: list[SourceSpec] = []
    for kind, sources in zip(KINDS, (labels, captions, images), strict=True):
        for src in sources:
            name = _unique(_stem(src), taken)
            taken.add(name)
            named.append(SourceSpec(name, kind, src))
    return named


def _stem(src: str) -> str:
    base, _ = split_options(src)
    path = Path(base).expanduser()
    if is_tar_pattern(base) and path.parent.name:
        path = path.parent  # the shards of one data set
    stem = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r"[^\w.]+", "-", stem).strip("-.") or "source"


def _unique(stem: str, taken: set[str]) -> str:
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name
