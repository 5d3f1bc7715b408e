"""Resolution of a SRC on the command line to a registered source, a folder or a list, each with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast
from urllib.parse import unquote

from unicl_cli import binding, registry
from unicl_cli.contracts import DatasetSource
from unicl_cli.data.sources import catalogue
from unicl_cli.data.sources.catalogue import Dataset, LocatedPart, MissingFilesError
from unicl_cli.data.sources.data_dirs import data_dirs, folders_of
from unicl_cli.data.sources.hf_folder import is_dataset
from unicl_cli.data.sources.hub import HUB, commit_of, fetch_folder, is_offline
from unicl_cli.data.sources.lists.files import find_tars, is_list, is_tar_pattern, not_a_list_error
from unicl_cli.data.sources.named import JoinedLists, KnownSource
from unicl_cli.data.sources.whole_split import name_split
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.problems import PartError

if TYPE_CHECKING:
    from unicl_cli.data.sources.table import Table

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
    base, options = split_options(src)
    dataset = _find_known(base)
    if dataset is None or dataset.is_built_in:
        return _open_registered(src, kind, *resolve_source(src))
    check_kind(dataset, kind)
    lists = catalogue.locate_lists(dataset)
    if lists:
        verify = options.pop("verify", "true").lower() != "false"
        files = [located.file for located in lists] if verify else []
        return KnownSource(_open_lists(src, dataset, lists, kind, options), dataset, files)
    return KnownSource(_open_registered(src, kind, *resolve_source(src)), dataset)


def open_sources(specs: Sequence[SourceSpec]) -> list[DatasetSource]:
    """Open all sources. UniclError, with the command for all, for a data set of the catalogue that is nowhere."""
    try:
        return [open_source(spec.src, spec.kind) for spec in specs]
    except MissingFilesError as error:
        raise catalogue.join_missing([error], [_as_option(spec.kind, spec.src) for spec in specs]) from error


def check_known(sources: Sequence[tuple[str, str]]) -> None:
    """Raise UniclError for all data sets of the catalogue that are nowhere, without asking the hub.

    ``sources`` are pairs of a kind and a SRC. Most libraries of `prepare` are imported after this check.
    """
    missing: list[MissingFilesError] = []
    for kind, src in ((kind, src) for kind, written in sources for src in _expand(written)):
        dataset = _find_known(split_options(src)[0])
        if dataset is None or (not is_offline() and (dataset.hub or dataset.shards)):
            continue
        try:
            open_source(src, kind)
        except MissingFilesError as error:
            missing.append(error)
    if missing:
        raise catalogue.join_missing(missing, [_as_option(kind, src) for kind, src in sources])


def _as_option(kind: str, src: str) -> str:
    """Return a source as it is given to `prepare`, without a path where it was not found."""
    base, options = split_options(src)
    return f"--{kind} {shlex.quote(base if 'path' in options and _find_known(base) else src)}"


def _find_known(base: str) -> Dataset | None:
    """Return the data set that a name means; None if it is a plugin's, or a path without the data set's own files."""
    dataset = catalogue.find_dataset(base)
    if dataset is None or dataset.reader:
        return dataset
    if not dataset.is_built_in and _find_registered(dataset.name):
        return None
    path = Path(base)
    is_other = path.exists() and not catalogue.has_shards(path) and not catalogue.has_list(dataset, path)
    return None if is_other else dataset


def check_kind(dataset: Dataset, kind: str) -> None:
    """Raise UniclError for a data set that has no rows of this kind."""
    if kind in ("labels", "captions") and dataset.kind not in (kind, "both"):
        raise UniclError(f"{dataset.name}: no {kind}", f"use it with {dataset.option} {dataset.name}")


def _open_lists(
    src: str, dataset: Dataset, lists: Sequence[LocatedPart], kind: str, options: dict[str, str]
) -> DatasetSource:
    """Open the lists of a data set as one source; ``part=`` takes one of them, other options are those of lists."""
    chosen = options.pop("part", None)
    parts = {located.part.name: located for located in lists}
    if chosen is not None:
        if chosen not in parts:
            raise UniclError(f"{src}: has no part '{chosen}'{did_you_mean(chosen, parts)}", f"use {', '.join(parts)}")
        parts = {chosen: parts[chosen]}
    opened = {name: _open_list(src, located, kind, options) for name, located in parts.items()}
    joined = dataset.layouts and all(part.name != catalogue.ALL for part in dataset.layouts[0])
    source = JoinedLists(opened, is_cut=chosen is not None) if joined else next(iter(opened.values()))
    return cast("DatasetSource", source)  # a cached property is not seen as an attribute


def _open_list(src: str, located: LocatedPart, kind: str, options: dict[str, str]) -> Table:
    beside = {option: str(file.absolute()) for option, file in located.files.items()}
    own = {name: _spell(value) for name, value in located.part.options.items()}
    return cast("Table", _open_registered(src, kind, "table", {**own, **beside, **options, "path": str(located.file)}))


def _spell(value: str | bool) -> str:  # noqa: FBT001 - a scalar of YAML
    return str(value).lower() if isinstance(value, bool) else value


def _open_registered(src: str, kind: str, name: str, written: dict[str, str]) -> DatasetSource:
    """Open a registered source with options as they are written."""
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

    A name is looked up among the sources, then as a path, then in the directories of `--data-dir` and UNICL_DATA, and
    last, if the catalogue knows it, on the hub.
    """
    base, options = split_options(src)
    if not base:
        raise UniclError(f"source '{src}': the name is empty", "name a folder, a list or a registered source")
    if base.startswith(("http://", "https://")):
        raise UniclError(f"{base}: a URL cannot be a source", "download it first, or use the hub: hf:org/name")
    if base.startswith(HUB):
        return "hf", {"path": base, **options}
    dataset = _find_known(base)
    if dataset is None:
        if registered := _find_registered(base):
            return registered, options
        return _find_path([base], options) or _raise_unknown(base)
    if (registered := _find_registered(dataset.name)) and (options or not _is_only_on_hub(dataset)):
        return registered, options
    names = [base, dataset.name, *([dataset.shards, f"wds_{dataset.shards}"] if dataset.shards else [])]
    return _find_path(names, options) or _find_on_hub(dataset)


def _find_path(names: Sequence[str], options: dict[str, str]) -> tuple[str, dict[str, str]] | None:
    """Return the reader of the first name that is a path, else is in a directory of data; None if there is none."""
    for place in (Path(names[0]).expanduser(), *(of / name for of in data_dirs() for name in names)):
        if found := _read_place(place):
            name, own = found
            return name, {**own, **options}
    return None


def _read_place(place: Path) -> tuple[str, dict[str, str]] | None:
    """Return the source that reads a path, and the options that say where; None if nothing is there.

    UniclError for tars of WebDataset without the plugin that reads them.
    """
    if not catalogue.has_shards(place) and (tars := find_tars(place)):
        if _find_registered(WEBDATASET) is None:
            raise not_a_list_error(place)
        return WEBDATASET, tars
    reader = _reader_of(place)
    return (reader, {"path": str(place)}) if reader else None


def _is_only_on_hub(dataset: Dataset) -> bool:
    """Return whether a data set that the hub has is in no directory."""
    if dataset.hub is None:
        return False
    return not any((place / file.name).is_file() for file in dataset.files for place in folders_of(dataset.name))


def _find_on_hub(dataset: Dataset) -> tuple[str, dict[str, str]]:
    """Return the source that reads the hub's copy. UniclError, with all ways to get the data, if there is none."""
    try:
        if dataset.hub:
            commit_of(dataset.hub.name, None)
            return "hf", {"path": f"{HUB}{dataset.hub.name}", **dataset.hub.options}
        if dataset.shards:
            return "clip_benchmark", {"path": str(fetch_folder(f"{catalogue.SHARDS_HUB}{dataset.shards}"))}
    except UniclError as error:
        raise catalogue.missing_error(dataset, why=error.message) from error
    raise catalogue.missing_error(dataset)


def _raise_unknown(base: str) -> NoReturn:
    if base.endswith(".tar"):
        raise not_a_list_error(Path(base))
    known = {*registry.names("datasets"), *catalogue.known_datasets()}
    raise UniclError(
        f"{base}: no such folder, list or source{did_you_mean(base, known)}",
        "check the path, or choose a name: unicl prepare --list",
    )


def _find_registered(name: str) -> str | None:
    """Return the name if a source is registered under it, bare or as ``dist/name``; else None."""
    spelled = {of for entry in registry.table("datasets") for of in (entry.name, f"{entry.dist}/{entry.name}")}
    return name if name in spelled else None


def _reader_of(path: Path) -> str | None:
    """Return the source that reads the folder or list at a path; None if nothing is there."""
    if path.is_dir():
        if catalogue.has_shards(path):
            return "clip_benchmark"
        if (path / "plan.json").is_file() and (path / "parts").is_dir():
            raise UniclError(f"{path}: already a corpus", "use it in a recipe, or name the sources it was made from")
        from unicl_cli.data.sources.img2dataset import is_img2dataset  # late: it imports Arrow

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
        if key in options:
            raise UniclError(f"{src}: option '{key}' is given twice", f"write {key}= once; & in a value is %26")
        options[key] = unquote(value)
    return base, options


def name_sources(labels: Sequence[str], captions: Sequence[str], images: Sequence[str]) -> list[SourceSpec]:
    """Give every SRC its kind and a name made from its stem; a repeated name gets ``-2``, ``-3``, …"""
    taken: set[str] = set()
    named: list[SourceSpec] = []
    for kind, sources in zip(KINDS, (labels, captions, images), strict=True):
        for src in (part for written in sources for part in _expand(written)):
            name = _unique(_stem(src), taken)
            taken.add(name)
            named.append(SourceSpec(name, kind, src))
    return named


def _expand(src: str) -> list[str]:
    """Return the sources that a name stands for, with its options: those of `gcc15m`, else itself."""
    base, options = split_options(src)
    dataset = _find_known(base)
    if dataset is None or not dataset.includes:
        return [src]
    return [f"{name}{src[len(base) :] if options else ''}" for name in dataset.includes]


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
