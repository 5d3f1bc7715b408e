"""Installed, clashing, outdated, broken and switched-off plugins, each through the real command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from unicl_cli import registry
from unicl_cli.cli import main

SOUND = "def one(*, size: int = 3): ...\n"
Site = Callable[..., None]


class Done(NamedTuple):
    """The answer of a command."""

    returncode: int
    stdout: str
    stderr: str


Unicl = Callable[..., Done]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """``site("unicl-x", module, losses="one = unicl_x:one")``: a distribution beside the installed `unicl-odd`."""

    def add(name: str, module: str, **groups: str) -> None:
        package = name.replace("-", "_")
        info = tmp_path / "site" / f"{package}-1.2.dist-info"
        info.mkdir(parents=True)
        (info.parent / f"{package}.py").write_text(module)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nSummary: Tests {name}.\n")
        (info / "entry_points.txt").write_text("\n".join(f"[unicl.{kind}]\n{line}" for kind, line in groups.items()))

    return add


@pytest.fixture
def unicl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Unicl]:
    """``unicl("plugins", "ls", UNICL_NO_PLUGINS="1")``: in this process, which looks for plugins anew each time."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def run(*words: str, **environment: str) -> Done:
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name in ("unicl_bad", "unicl_twin", "unicl_x")]:
                patch.delitem(sys.modules, name)
            for name, value in environment.items():
                patch.setenv(name, value)
            registry.forget()
            capsys.readouterr()
            return Done(main(words), *capsys.readouterr())

    yield run
    monkeypatch.undo()
    registry.forget()


def started(*words: str, path: str = "") -> Done:
    """The same command in a fresh process."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "unicl_cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def refusal(done: Done) -> str:
    """The error: exit status 2, no traceback, nothing on standard output."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def states(done: Done) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["plugins"]
    return {f"{row['dist']}/{row['name']}": row["state"] for row in rows if row["dist"] != "unicl"}


def test_two_distributions_of_one_name_clash_where_it_is_used_and_nowhere_else(site: Site, unicl):
    site("unicl-twin", SOUND, losses="odd-views = unicl_twin:one", encoders="timm = unicl_twin:one")
    listed = states(unicl("plugins", "ls", "--json"))
    assert listed["unicl-odd/odd-views"] == "clash: write unicl-odd/odd-views"
    assert listed["unicl-twin/odd-views"] == "clash: write unicl-twin/odd-views"
    assert listed["unicl-twin/timm"] == "hidden by a built-in: write unicl-twin/timm"
    said = refusal(unicl("recipes", "validate", "quickstart", "loss=odd-views"))
    assert "(loss=odd-views): loss.name: loss 'odd-views': in 2 plugins" in said
    said = refusal(unicl("plugins", "show", "losses", "odd-views"))
    assert "hint: write unicl-odd/odd-views or unicl-twin/odd-views" in said.replace(
        "unicl-twin/odd-views or unicl-odd/odd-views", "unicl-odd/odd-views or unicl-twin/odd-views"
    )
    assert unicl("recipes", "validate", "quickstart", "loss=unicl-twin/odd-views").returncode == 0


BAD = [
    ("import nowhere_to_be_found", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    (f"{SOUND}one.unicl_api = 99\n", "for plugin interface 99, but this unicl has 1"),
    ("one = 3", "not a function with keyword-only options"),
]


@pytest.mark.parametrize(("module", "reason"), BAD)
def test_a_bad_plugin_is_one_line_that_names_its_distribution_and_harms_no_other(site: Site, unicl, module, reason):
    site("unicl-bad", module, losses="one = unicl_bad:one")
    listed = states(unicl("plugins", "ls", "--json"))
    assert listed["unicl-bad/one"] == f"broken: plugin 'one' (unicl-bad 1.2): {reason}"
    assert listed["unicl-odd/odd-views"] == "ok"
    said = refusal(unicl("recipes", "validate", "quickstart", "loss=one"))
    assert f"loss.name: plugin 'one' (unicl-bad 1.2): {reason}" in said


def test_a_fresh_process_finds_what_is_installed_and_names_what_is_broken(site: Site, tmp_path: Path):
    site("unicl-bad", "import nowhere_to_be_found", losses="one = unicl_bad:one")
    listed = states(started("plugins", "ls", "--json", path=str(tmp_path / "site")))
    assert listed["unicl-bad/one"].startswith("broken: plugin 'one' (unicl-bad 1.2): cannot be loaded: ")
    assert listed["unicl-odd/odd-views"] == "ok"


def test_a_command_that_cannot_be_loaded_is_one_line_and_leaves_the_help_alone(site: Site, unicl):
    site("unicl-bad", "import nowhere_to_be_found", commands="bad = unicl_bad:app")
    assert refusal(unicl("bad")).startswith("error: plugin 'bad' (unicl-bad 1.2): cannot be loaded: ModuleNotFound")
    helped = unicl("--help")
    assert helped.returncode == 0
    assert "Tests unicl-bad." in helped.stdout


@pytest.mark.parametrize("off", ["1", "other,odd-views"])
def test_the_off_switch_is_seen_and_said_and_never_hits_the_core(unicl, off: str):
    listed = states(unicl("plugins", "ls", "--json", UNICL_NO_PLUGINS=off))
    assert listed["unicl-odd/odd-views"] == "off: UNICL_NO_PLUGINS"
    assert (listed["unicl-odd/odd-bind"] == "ok") == (off == "other,odd-views")
    said = refusal(unicl("plugins", "show", "losses", "odd-views", UNICL_NO_PLUGINS=off))
    assert said.startswith("error: no loss 'odd-views'")
    assert f"UNICL_NO_PLUGINS={off} switches 'odd-views' off" in said
    assert ("odd-size" in unicl("--help", UNICL_NO_PLUGINS=off).stdout) == (off == "other,odd-views")


def test_listing_every_shipped_plugin_loads_no_torch():
    code = (
        "import sys; from unicl_cli.cli import main; main(['plugins', 'ls']); "
        "print(sorted({'torch', 'transformers', 'onnx', 'onnxruntime', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "broken" not in done.stdout


def test_the_listing_says_where_it_looked(unicl):
    found = json.loads(unicl("plugins", "ls", "--json").stdout)
    assert (found["prefix"], found["interface"], found["off"]) == (sys.prefix, 1, "")
    assert Path(found["interpreter"]).samefile(sys.executable)
    assert f"installed in {sys.prefix} (" in unicl("plugins", "ls").stdout.splitlines()[-1]


def test_show_tells_all_that_a_user_needs(site: Site, unicl):
    module = '''
from typing import Annotated, Literal
from pydantic import Field
def one(*, image_size: int, mode: Literal["a", "b"] | None = None, share: Annotated[float, Field(ge=0, lt=1)] = 0.5):
    """A tower of one's own."""
'''
    site("unicl-x", module, encoders="one = unicl_x:one")
    shown = unicl("plugins", "show", "encoders", "one").stdout
    for line in (
        "one: encoder of unicl-x 1.2, unicl_x:one",
        "A tower of one's own.",
        "  mode: 'a' | 'b' | None = null",
        "  share: float ≥ 0, < 1 = 0.5",
        "in a recipe: name: one, under model.image, model.text or model itself",
    ):
        assert line in shown.splitlines()
    assert "image_size" not in shown, "filled in, no option"
    told = json.loads(unicl("plugins", "show", "commands", "odd-size", "--json").stdout)
    assert told["use"] == "unicl odd-size --help"
    assert told["arguments"] == [
        {"name": "MODEL", "type": "str", "required": True},
        {"name": "--at-least", "type": "int", "required": False, "default": 0},
    ]
