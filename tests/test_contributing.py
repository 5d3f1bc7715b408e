"""CONTRIBUTING, plugins/README and docs/style.md are true: layers, files of a step, plugins, make targets."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_layers_are_those_that_import_linter_holds():
    told = re.search(r"```text\n(cli\n.*?)```", PAGE, re.DOTALL)[1].split("\n")[:-1]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = [line.replace("unicl_cli.", "") for line in contracts[0]["layers"]]
    assert told == held


def test_every_room_is_in_the_table():
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    rooms = {path.parent.name for path in (ROOT / "unicl_cli").glob("*/__init__.py")}
    assert {room for room in rooms if f"{room}/" not in table} == set()


def test_the_make_targets_that_are_named_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
        assert set(re.findall(r"[`$] ?make ([a-z-]+)", text)) <= targets, page


def test_the_plugins_that_are_published_are_listed():
    told = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    assert {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")} == set(
        re.findall(r"^\| \[?`?(unicl-[a-z]+)", told, re.MULTILINE)
    )
