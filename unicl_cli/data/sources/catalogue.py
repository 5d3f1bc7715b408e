"""The catalogue of data sets known by name: facts from `catalogue.yaml`, and where the files of each are looked for."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict

from unicl_cli.data.sources.data_dirs import data_dirs, folders_of
from unicl_cli.data.sources.hub import is_offline
from unicl_cli.errors import UniclError

_FACTS = Path(__file__).with_name("catalogue.yaml")
SHARDS_HUB = "clip-benchmark/wds_"
"""Begin of the names of the hub's copies of evaluation sets, one repository for each."""
ALL = "all"
"""Stands for all splits where only the number of all rows is known."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""Several names of one file; the first that exists counts."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OfficialFile(_Facts):
    """A file as its makers publish it; ``get`` is what to do with it, ``url`` its own address."""

    name: str
    size: str = ""
    md5: str = ""
    get: str = ""
    url: str = ""

    def describe(self) -> str:
        """Return the name with what to check and to do."""
        checks = [self.size, self.md5 and f"md5 {self.md5}", self.get, self.url]
        text = ", ".join(filter(None, checks))
        return f"{self.name} ({text})" if text else self.name


class ListPart(_Facts):
    """A list of a data set: ``files`` are options whose value is a file beside it, ``options`` are those of lists."""

    list: Names
    files: dict[str, Names] = {}
    options: dict[str, str | bool] = {}
    optional: bool = False

    @property
    def name(self) -> str:
        """The split that all its rows are in, else "all"."""
        split = self.options.get("split", ALL)
        return split if isinstance(split, str) and split in ("train", "val", "test") else ALL


class HubCopy(_Facts):
    """A copy of a data set on the hub that is read as it is, with the options that it needs."""

    name: str
    options: dict[str, str] = {}


class Dataset(_Facts):
    """A data set: what it holds, what the user has to bring, and how its files become a source.

    ``reader`` is a source of its own that finds the files; ``shards`` its name in CLIP_benchmark's layout.
    """

    name: str = ""
    kind: Literal["labels", "captions", "both"]
    aliases: tuple[str, ...] = ()
    rows: dict[str, int] = {}
    classes: int = 0
    rounded: bool = False
    size: str = ""
    terms: str = ""
    bring: str = ""
    get: str = ""
    url: str = ""
    files: tuple[OfficialFile, ...] = ()
    reader: str = ""
    layouts: tuple[tuple[ListPart, ...], ...] = ()
    shards: str = ""
    hub: HubCopy | None = None
    includes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    caution: str = ""

    @property
    def is_built_in(self) -> bool:
        """True for data that unicl or a library draws: nothing is looked for, and options choose its rows."""
        return not (self.files or self.shards or self.includes)

    def md5_of(self, name: str) -> str:
        """Return the published md5 of a file; "" if there is none."""
        return next((file.md5 for file in self.files if file.name == name), "")

    @property
    def option(self) -> str:
        """The option of `prepare` that takes this data set."""
        return "--captions" if self.kind == "captions" else "--labels"


class LocatedPart(NamedTuple):
    """A list that was found, with the files beside it by option."""

    part: ListPart
    file: Path
    files: Mapping[str, Path]


@cache
def known_datasets() -> dict[str, Dataset]:
    """Return the data sets by name."""
    facts = yaml.load(_FACTS.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: Dataset.model_validate({"name": name, **entry}) for name, entry in facts.items()}


@cache
def _names() -> dict[str, str]:
    names = {alias: dataset.name for dataset in known_datasets().values() for alias in dataset.aliases}
    return names | {name: name for name in known_datasets()}


def find_dataset(name: str) -> Dataset | None:
    """Return the data set with this name or alias, in any case; None if there is none."""
    known = _names().get(name.lower())
    return known_datasets()[known] if known else None


def has_shards(folder: Path) -> bool:
    """Return whether a folder has CLIP_benchmark's layout: the number of shards in a file beside those of a split."""
    return any((folder / split / "nshards.txt").is_file() for split in ("test", "train"))


def has_list(dataset: Dataset, folder: Path) -> bool:
    """Return whether a folder has one of the lists of a data set."""
    names = (name for layout in dataset.layouts for part in layout for name in part.list)
    return any((folder / name).is_file() for name in names)


def locate_lists(dataset: Dataset) -> list[LocatedPart]:
    """Return the lists of the first layout that is there, without optional ones that are missing; [] if none is.

    UniclError if a list is there and a file beside it is not.
    """
    for layout in dataset.layouts:
        found = [located for part in layout if (located := _locate(dataset, part))]
        if {part.list for part in layout if not part.optional} <= {located.part.list for located in found}:
            return found
    return []


def _locate(dataset: Dataset, part: ListPart) -> LocatedPart | None:
    """Return the first list of its names that is there, with the files beside it; None if there is none."""
    there = ((place, place / name) for place in folders_of(dataset.name) for name in part.list)
    place, file = next((found for found in there if found[1].is_file()), (None, None))
    if place is None or file is None:
        return None
    beside: dict[str, Path] = {}
    for option, names in part.files.items():
        found = next((place / name for name in names if (place / name).exists()), None)
        if found is None:
            raise MissingFilesError(
                dataset, f"{dataset.name}: {file} is there, but not {' or '.join(names)} in {place}"
            )
        beside[option] = found
    return LocatedPart(part, file, beside)


class MissingFilesError(UniclError):
    """The files of a data set are not there; ``get`` says how to get them."""

    def __init__(self, dataset: Dataset, message: str, missing: Sequence[str] = ()) -> None:
        self.get = _describe_ways(dataset, missing)
        super().__init__(message, f"{self.get}, then run: {_command(f'{dataset.option} {dataset.name}')}")


def join_missing(errors: Sequence[MissingFilesError], asked: Sequence[str]) -> UniclError:
    """Return one error for all data sets that are missing, with the command for all that was ``asked``, as options."""
    get = "; ".join(error.get for error in errors)
    first, *more = (error.message for error in errors)
    return UniclError(first, f"{get}, then run: {_command(*asked)}", details=more)


def missing_error(
    dataset: Dataset, missing: Sequence[str] = (), tried: Sequence[Path] = (), why: str = ""
) -> MissingFilesError:
    """Return the error for a data set whose files are not there: what, where it was searched for, how to get it.

    ``missing`` are the missing files (default: the first of each layout); ``tried`` are the places, if they are not the
    usual ones; ``why`` says what else failed.
    """
    names = missing or [part.list[0] for layout in dataset.layouts[:1] for part in layout if not part.optional]
    names = names or [file.name for file in dataset.files]
    sizes = {file.name: file.size for file in dataset.files}
    needed = " or ".join(f"{name} ({sizes[name]})" if sizes.get(name) else name for name in names)
    needed = needed or f"the folder wds_{dataset.shards}"
    looked = [str(place) for place in tried or folders_of(dataset.name)]
    where = f"not found (looked in {', '.join(looked)})" if looked else "not found (no --data-dir given)"
    return MissingFilesError(dataset, f"{dataset.name}: {needed}: {where}{f'; {why}' if why else ''}", missing)


def _directory() -> str:
    """Return the directory that downloads belong into, as a word of a command; DIR if none is given."""
    return next((shlex.quote(str(place)) for place in data_dirs()), "DIR")


def _command(*asked: str) -> str:
    return " ".join(["unicl prepare", *asked, "--data-dir", _directory()])


def _describe_ways(dataset: Dataset, missing: Sequence[str] = ()) -> str:
    """Return what to download from where, and into which directory."""
    files = [file for file in dataset.files if len(missing) != 1 or file.name in missing]
    ways = list(_other_ways(dataset))
    if not files:
        return " or ".join(ways)
    source = f" from {dataset.url}" if dataset.url else ""
    note = f" ({dataset.get})" if dataset.get else ""
    place = _directory() if data_dirs() else "a directory DIR"
    ways.append(f"download {', '.join(file.describe() for file in files)}{source}{note} into {place}")
    return ", or ".join(ways)


def _other_ways(dataset: Dataset) -> Iterator[str]:
    if dataset.hub:
        first = "unset HF_HUB_OFFLINE" if is_offline() else "check the connection"
        yield f"{first} to read hf:{dataset.hub.name}"
    if dataset.shards:
        repo = f"{SHARDS_HUB}{dataset.shards}"
        yield f"run `hf download {repo} --repo-type dataset --local-dir {_directory()}/wds_{dataset.shards}`"
