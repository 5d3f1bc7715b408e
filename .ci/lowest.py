"""Print the lowest version that pyproject.toml and the plugins allow of each dependency, as pip constraints."""

import re
import sys
import tomllib
from pathlib import Path


def bounds(pyproject: Path) -> dict[str, str]:
    """Return name -> lowest version of the dependencies and of the `dev` extra."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = project.get("dependencies", []) + project.get("optional-dependencies", {}).get("dev", [])
    found = (re.match(r"([\w.-]+)(?:\[.*\])?\s*>=\s*([\w.]+)", item) for item in wanted)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def main(files: list[str]) -> None:
    lowest: dict[str, str] = {}
    for file in files:
        lowest = bounds(Path(file)) | lowest  # the first file, unicl's own, decides
    print("\n".join(f"{name}=={version}" for name, version in sorted(lowest.items())))


if __name__ == "__main__":
    main(sys.argv[1:])
