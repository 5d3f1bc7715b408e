"""The house: sizes of files, first sentences, entry points in their packages, a short way from command to loss."""

import ast
import importlib
import re
import sys
import tomllib
import traceback
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from unicl_cli import api
from unicl_cli.cli import main

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "unicl_cli").rglob("*.py"))
PACKAGES = {
    "unicl.encoders": "unicl_cli.factories",
    "unicl.losses": "unicl_cli.factories",
    "unicl.datasets": "unicl_cli.data.sources",
    "unicl.evaluators": "unicl_cli.jobs.evaluators.factories",
    "unicl.commands": "unicl_cli.commands",
}


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@pytest.mark.parametrize("folder", ["unicl_cli", "tests", "plugins"])
def test_no_file_is_longer_than_400_lines(folder):
    long = {str(f): n for f in (ROOT / folder).rglob("*.py") if (n := len(f.read_text().splitlines())) > 400}
    assert long == {}


def test_a_plugin_is_short_enough_to_read():
    """Without its tests; ViLBERT is two streams, three objectives and attention maps."""
    most = {"unicl-vilbert": 900}
    lines = {
        plugin.name: sum(len(file.read_text().splitlines()) for file in plugin.glob("unicl_*/**/*.py"))
        for plugin in (ROOT / "plugins").glob("unicl-*")
    }
    assert {name: n for name, n in lines.items() if n > most.get(name, 600)} == {}
    assert len(lines) > 10


def test_every_module_says_in_one_sentence_what_it_is():
    for file in MODULES:
        first = (ast.get_docstring(parsed(file)) or "").splitlines()[:1]
        assert first, file
        assert re.search(r"[.?!]$", first[0]), f"{file}: {first[0]}"


def imports_of(file: Path) -> Iterator[str]:
    """The modules that a file imports at any depth of its code, and the names from them, which may be modules too."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (str(node.module), *(f"{node.module}.{each.name}" for each in node.names))


def test_no_module_imports_itself_by_way_of_others():
    """In a function, for a type, or inside a room, too; the order of the rooms is import-linter's."""
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in MODULES}
    below = {name: {each for each in imports_of(file) if each in names} for name, file in names.items()}
    assert len(below["unicl_cli.jobs.bench.loader"]) > 8, "the imports are found"
    TopologicalSorter(below).prepare()  # a CycleError names the modules of a circle


def test_no_file_has_a_name_for_anything():
    forbidden = {"utils.py", "helpers.py", "common.py", "base.py", "misc.py", "manager.py"}
    assert not [f for f in MODULES if f.name in forbidden]


def test_the_standard_streams_are_written_in_a_few_places():
    """Everything else goes through `write_line`, `print_line`, `print_json` or rich tables of escaped documents."""
    allowed = {
        *("errors.py", "cli.py", "storage/json_output.py", "commands/output.py"),  # escape what they write
        *("commands/recipes.py", "jobs/train/dry_run.py"),  # YAML, which is escaped as such
        *("commands/zeroshot.py", "inference/image_names.py"),  # rows
        "jobs/bench/fresh_process.py",  # JSON for the parent process
    }
    writers = re.compile(r"^(sys\.(stdout|stderr)(\.buffer)?\.(write|writelines)|typer\.s?echo|print)$")
    found: set[str] = set()
    for file in MODULES:
        calls = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.Call)]
        if any(writers.match(ast.unparse(call.func)) for call in calls):
            found.add(file.relative_to(ROOT / "unicl_cli").as_posix())
    assert found <= allowed


def test_entry_points_lie_in_their_packages():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert groups.keys() == PACKAGES.keys()
    for group, points in groups.items():
        for name, target in points.items():
            module, _, attribute = target.partition(":")
            assert module == PACKAGES[group] or module.startswith(f"{PACKAGES[group]}."), name
            assert callable(getattr(importlib.import_module(module), attribute)), name


def test_the_api_is_sorted_complete_and_there():
    assert api.__all__ == sorted(api.__all__, key=lambda name: (name.upper() != name, name[0].islower(), name))
    assert set(api.__all__) == set(api._MODULE)
    for name in api.__all__:
        assert getattr(api, name) is getattr(importlib.import_module(api._MODULE[name]), name)
    with pytest.raises(AttributeError, match=r"unicl_cli\.api has no 'nothing'"):
        _ = api.nothing


def test_the_way_from_the_command_to_the_loss_is_short(digits, tmp_path, monkeypatch):
    """Own frames between `commands/train` and the pure function, and the files they lie in."""
    from unicl_cli.losses import unicl

    seen, compute = [], unicl.both_ways

    def remember(*args, **options):
        stack = [f for f in traceback.extract_stack() if "unicl_cli" in f.filename]
        if not any(f.filename.endswith("core/loop.py") and f.name == "fit" for f in stack):
            return compute(*args, **options)  # the rehearsal before the first step
        seen.append(stack)
        raise KeyboardInterrupt

    monkeypatch.setattr(unicl, "both_ways", remember)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    words = [f"data.train=[{{corpus: {digits}}}]", "eval=[]", "batch.size=12", "--run-dir", str(tmp_path / "run")]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        sys.exit(main(["train", "digits-unicl", *words]))
    (frames,) = seen
    names = [f.filename.split("unicl_cli/")[-1] for f in frames]
    way = names[names.index("commands/train.py") :]
    files = [name for n, name in enumerate(way) if name not in way[:n]]
    assert len(way) <= 11, way  # a rollback begins another lap of the loop
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = re.search(
        r"To know what one training step does, read these files in this order: (.*?)\. They are", page, re.DOTALL
    )
    assert files == re.findall(r"`(.*?)`", told[1])


def test_no_folder_of_tests_is_left_out(pytestconfig):
    """Pytest's own list of folders to skip has `build`, which is a room here."""
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    skipped = pytestconfig.getini("norecursedirs")
    assert not [name for name in folders if any(fnmatch(name, pattern) for pattern in skipped)]
