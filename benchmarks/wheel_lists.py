"""The lists behind `wheels.sh`: what unicl needs, what a machine has, what it lacks; and the check of the folder."""

import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version


def versions(report: Path) -> dict[str, str]:
    """Return name and version of each package that a report of pip would install."""
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in found}


def needs(project: Path) -> list[str]:
    """Return the requirements of a pyproject.toml."""
    return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]


def pins(names: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in names.items()]


def missing(wanted: Mapping[str, str], has: Mapping[str, str]) -> list[str]:
    """Return what is wanted and not there; CUDA's libraries come with the machine's torch."""
    lacking = {name: version for name, version in wanted.items() if name not in has}
    return pins({name: version for name, version in lacking.items() if not re.match(r"(nvidia|cuda)-", name)})


def metadata_of(wheel: Path) -> tuple[list[Requirement], str]:
    """Return a wheel's requirements, and the Python versions that it takes."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        head = Parser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in head.get_all("Requires-Dist") or []], head.get("Requires-Python") or ""


def problems(folder: Path, has: Mapping[str, str], python: str, most_mb: float) -> list[str]:
    """Return what is wrong with the folder: a wheel that this Python cannot take, a requirement that is nowhere."""
    wheels = sorted(folder.glob("*.whl"))
    named = {wheel: parse_wheel_filename(wheel.name)[:2] for wheel in wheels}
    there = dict(has) | {str(name): str(version) for name, version in named.values()}
    found: list[str] = []
    for wheel in wheels:
        required, pythons = metadata_of(wheel)
        if not SpecifierSet(pythons).contains(f"{python}.0"):
            found.append(f"{wheel.name}: needs Python {pythons}")
        for each in required:
            if each.marker is not None and not each.marker.evaluate(ENVIRONMENT | {"python_version": python}):
                continue
            version = there.get(canonicalize_name(each.name))
            if version is None or not each.specifier.contains(Version(version), prereleases=True):
                found.append(f"{wheel.name}: needs {each}, and the machine would have {version}")
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    if size > most_mb:
        largest = max(wheels, key=lambda wheel: wheel.stat().st_size)
        found.append(f"{size:.0f} MB, more than {most_mb:g}: name what the machine has; the largest is {largest.name}")
    return found


ENVIRONMENT = {"extra": "", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}


def main(words: Sequence[str]) -> int:
    command, paths = words[0], words[1:]
    if command == "needs":
        lines = needs(Path(paths[0]))
    elif command == "pins":
        lines = pins(versions(Path(paths[0])))
    elif command == "missing":
        lines = missing(versions(Path(paths[0])), versions(Path(paths[1])))
    else:
        folder, has, python, most = Path(paths[0]), versions(Path(paths[1])), paths[2], float(paths[3])
        wrong = problems(folder, has, python, most)
        sizes = [(wheel.stat().st_size / 1e6, wheel.name) for wheel in sorted(folder.glob("*.whl"))]
        lines = [f"{size:6.1f} MB  {name}" for size, name in sizes] + [f"{sum(s for s, _ in sizes):6.1f} MB in all"]
        sys.stderr.writelines(f"error: {line}\n" for line in wrong)
        if wrong:
            return 1
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
