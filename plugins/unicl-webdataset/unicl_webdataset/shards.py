"""WebDataset tars without unpacking: the files of a pattern, and the position of each member in them."""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.api import UniclError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")


class Member(NamedTuple):
    """A file inside a tar: ``size`` bytes from ``offset``."""

    offset: int
    size: int


class Sample(NamedTuple):
    """Neighbouring files of a tar with the same path up to the first dot; ``members`` by the ending after it."""

    key: str
    members: Mapping[str, Member]


def expand(pattern: str) -> list[str]:
    """Expand ``a-{00..11}.tar`` and ``{a,b}.tar`` to every name, in order; numbers keep their zeros."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    inner = found.group(1)
    if numbers := _RANGE.fullmatch(inner):
        first, last = numbers.groups()
        choices = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    return [name for choice in choices for name in expand(pattern[: found.start()] + choice + pattern[found.end() :])]


def shards_of(pattern: str) -> list[Path]:
    """List the tars of a folder, a file or a pattern, in order; raise UniclError if one is missing or compressed."""
    found: list[Path] = []
    for name in expand(str(Path(pattern).expanduser())):
        path = Path(name)
        if path.is_dir():
            found += sorted(path.glob("*.tar*"))
        elif "*" in path.name:
            found += sorted(path.parent.glob(path.name))
        elif path.is_file():
            found.append(path)
        else:
            raise UniclError(f"webdataset: {name}: no such file or folder", "use a folder, FILE.tar or {000..123}.tar")
    if not found:
        raise UniclError(f"webdataset: {pattern}: no tars found", "check the path; shards end in .tar")
    for path in found:
        if path.suffix != ".tar":
            raise UniclError(
                f"webdataset: {path}: a compressed tar cannot be read at random positions",
                f"decompress it first, for example with gunzip {path.name}",
            )
    return found


def samples_of(shard: Path, ignored: dict[str, int]) -> list[Sample]:
    """List all samples of a tar and count in ``ignored`` what is not a plain file; raise UniclError if damaged."""
    samples: list[Sample] = []
    members: dict[str, Member] = {}
    for name, member in _members(shard, ignored):
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        key, ending = found[1], found[2].lower()
        if not samples or samples[-1].key != key:
            members = {}
            samples.append(Sample(key, members))
        if ending in members:
            raise UniclError(f"webdataset: {shard}: duplicate member {name}", "write the shard again")
        members[ending] = member
    return samples


def _members(shard: Path, ignored: dict[str, int]) -> Iterator[tuple[str, Member]]:
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                parts = Path(info.name).parts
                if info.isdir() or _META.match(info.name):
                    continue
                if not info.isreg() or info.issparse():
                    ignored["links and devices"] = ignored.get("links and devices", 0) + 1
                elif Path(info.name).is_absolute() or ".." in parts:
                    ignored["names outside the tar"] = ignored.get("names outside the tar", 0) + 1
                else:
                    yield info.name, Member(info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UniclError(f"webdataset: {shard}: is not a complete tar: {error}", "copy or download it again") from error


def read(shard: Path, member: Member) -> bytes:
    """Read the bytes of a member; raise OSError if the file is shorter than when it was listed."""
    with shard.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) < member.size:
        raise OSError(f"{shard} ends inside a member")
    return data


def check_size(shard: Path, count: int) -> None:
    """Compare with ``sizes.json`` beside the shard, if there is one: a tar cut between members looks complete."""
    table = shard.parent / "sizes.json"
    if not table.is_file():
        return
    try:
        sizes: Any = json.loads(table.read_text(encoding="utf-8"))
        expected = sizes.get(shard.name)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UniclError(f"webdataset: {table}: is not a table of sizes: {error}", "fix or remove it") from error
    if expected is not None and expected != count:
        raise UniclError(
            f"webdataset: {shard} holds {count} samples, sizes.json says {expected}",
            "copy or download it again, or remove sizes.json if it is old",
        )
