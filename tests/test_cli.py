"""The command tree from outside: what it imports, its exit codes, its one-line errors."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from unicl_cli import __version__, errors, registry
from unicl_cli.cli import BUILTIN, main, run
from unicl_cli.errors import UniclError

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numpy", "timm", "datasets", "accelerate", "transformers", "open_clip", "sklearn", "click"}
Install = Callable[..., Path]
Capture = pytest.CaptureFixture[str]

LOCAL = """
import typer
app = typer.Typer(add_completion=False)
@app.command()
def go(how: str) -> None:
    "Fail in a chosen way."
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "bug":
        raise ZeroDivisionError("nobody thought of this")
    typer.echo("went")
PARTS = {"commands": {"go": app}, "losses": {"mine": lambda *, a=1: a}}
"""


@pytest.fixture
def plugin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(LOCAL, encoding="utf-8")
    monkeypatch.setenv("UNICL_PLUGINS", "")
    yield path
    monkeypatch.undo()
    registry.forget()


def unicl(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unicl_cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=300, check=False)


def loaded_by(*lines: str) -> set[str]:
    code = (
        "import sys; from unicl_cli.cli import main; status = [main(line.split()) for line in sys.argv[1:]]; "
        "sys.stderr.write('LOADED ' + ' '.join(sys.modules)); sys.exit(any(status))"
    )
    command = [sys.executable, "-c", code, *lines]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


def test_help_loads_nothing_heavy():
    assert not (HEAVY | {"pydantic", "yaml", "unicl_cli.launch.process"}) & loaded_by("--help")


def test_light_commands_load_no_torch():
    lines = ["recipes --help", "recipes ls", "recipes validate digits-unicl", "recipes schema"]
    assert not HEAVY & loaded_by(*lines, "plugins ls losses", "plugins show encoders transformer")


def test_the_builtin_commands_are_those_of_pyproject():
    written = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert written["unicl.commands"] == {name: f"unicl_cli.commands.{name.replace('-', '_')}:app" for name in BUILTIN}


def test_help_names_every_command_with_its_line(capsys: Capture):
    assert run(["--help"]) == 0
    text = " ".join(re.sub("[│─╭╮╰╯]", " ", capsys.readouterr().out).split())
    assert all(f" {name} {line} " in text for name, line in BUILTIN.items())


def test_version(capsys: Capture):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unicl {__version__}\n"


def test_a_mistyped_command_gets_the_nearest_and_status_2(capsys: Capture):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: unicl: no such command 'trian'; did you mean 'train'?\n  hint: ")


def test_no_arguments_is_help_and_status_2(capsys: Capture):
    assert main([]) == 2
    assert "zeroshot" in capsys.readouterr().out


def test_what_a_user_can_fix_is_one_line_on_stderr_and_status_2():
    done = unicl("recipes", "show", "quickstrat")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first == "error: no recipe 'quickstrat'; did you mean 'quickstart'?"
    assert second == "  hint: use a recipe file, or the name of a shipped recipe (unicl recipes ls lists them)"


def test_debug_adds_the_traceback_and_keeps_the_status():
    done = unicl("--debug", "recipes", "show", "quickstrat")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "\nerror: no recipe 'quickstrat'" in done.stderr


def test_only_the_first_worker_says_what_is_wrong():
    assert unicl("recipes", "show", "x", RANK="0").stderr.startswith("error: ")
    done = unicl("recipes", "show", "x", RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stderr) == (2, "")


def test_a_bug_keeps_its_traceback_and_asks_for_a_report(plugin_file: Path):
    done = unicl("--plugin", str(plugin_file), "go", "bug")
    assert done.returncode == 1
    assert "ZeroDivisionError: nobody thought of this\nThis is a bug in unicl: please report it" in done.stderr


def test_ctrl_c_is_130(plugin_file: Path):
    done = unicl("--plugin", str(plugin_file), "go", "interrupt")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_local_file_brings_a_command_and_its_help(plugin_file: Path, capsys: Capture):
    assert main(["--plugin", str(plugin_file), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Plugins" in text
    assert re.search(r"go +From", text)
    assert main(["--plugin", str(plugin_file), "go", "well"]) == 0
    assert capsys.readouterr().out == "went\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "FileNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("x = 1", "AttributeError: module 'unicl_local_mine' has no attribute 'PARTS'"),
        (
            'PARTS = {"loss": {}}',
            "ValueError: PARTS has ['loss'], but the kinds are encoders, datasets, losses, evaluators, commands",
        ),
    ],
)
def test_a_plugin_file_that_cannot_be_read_is_one_line(plugin_file: Path, capsys: Capture, text, reason: str):
    plugin_file.unlink()
    if text is not None:
        plugin_file.write_text(text)
    assert main(["--plugin", str(plugin_file), "plugins", "ls"]) == 2
    assert f"error: plugin file {plugin_file}: cannot be loaded: {reason}" in capsys.readouterr().err


def test_a_broken_plugin_command_leaves_the_rest_alone(distribution: Install, capsys: Capture):
    distribution("unicl-crash", "import nowhere_to_be_found", commands="crash = unicl_crash:app")
    distribution("unicl-three", "app = 3", commands="three = unicl_three:app")
    assert main(["--help"]) == 0
    assert "Tests unicl-crash." in capsys.readouterr().out
    assert main(["crash"]) == 2
    assert "error: plugin 'crash' (unicl-crash 1.0): cannot be loaded: ModuleNot" in capsys.readouterr().err
    assert main(["three"]) == 2
    assert "error: command 'three' is not a typer.Typer" in capsys.readouterr().err
    assert main(["plugins", "ls", "commands"]) == 0
    assert "broken: plugin 'crash' (unicl-crash 1.0): cannot" in capsys.readouterr().out


def test_a_plugin_cannot_replace_a_command_and_clashing_ones_are_reachable(distribution: Install, capsys: Capture):
    for name in ("unicl-a", "unicl-b"):
        module = f"{LOCAL}\n@app.command()\ndef who() -> None:\n    typer.echo('{name}')\n"
        distribution(name, module, commands=f"go = {name.replace('-', '_')}:app\nrecipes = nowhere:app")
    assert main(["go", "who"]) == 2
    assert "error: command 'go': in 2 plugins\n  hint: write unicl-" in capsys.readouterr().err
    assert main(["unicl-b/go", "who"]) == 0
    assert capsys.readouterr().out == "unicl-b\n"
    assert main(["recipes", "ls"]) == 0


def test_plugins_show_and_ls_print_one_json_document(capsys: Capture):
    assert main(["plugins", "show", "encoders", "two_tower", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "unicl/plugins/1"
    assert {"name": "text", "type": "Part | None", "required": True} in shown["arguments"]
    assert main(["plugins", "ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["plugins"]
    assert {row["kind"] for row in listed} == set(registry.KINDS)
    assert all(row["state"] == "ok" for row in listed if row["kind"] in ("encoders", "losses"))


def test_plugins_show_prints_options_with_defaults(capsys: Capture):
    assert main(["plugins", "show", "losses", "unicl"]) == 0
    assert "  terms: Sequence['image' | 'text'] = [\"image\", \"text\"]\n" in capsys.readouterr().out
    assert main(["plugins", "ls", "encoder"]) == 2
    assert "error: unknown kind of plugin 'encoder'; did you mean 'encoders'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict photo.jpg", "unicl: no command 'predict'; did you mean 'zeroshot'?"),
        ("evaluate runs/x", "did you mean 'eval'?"),
        ("validate r.yaml", "did you mean 'recipes validate'?"),
        ("publish runs/x", "no command 'publish'; did you mean 'export'?"),
        ("deploy runs/x", "no command 'deploy'; did you mean 'onnx'?"),
        (
            "train quickstart --lr 3",
            "no such option: --lr; did you mean 'optim.lr'? Keys of the recipe are written KEY",
        ),
        ("train quickstart --devcies 1", "no such option: --devcies; did you mean '--devices'?"),
    ],
)
def test_the_words_of_other_tools_lead_to_the_command_or_key(line: str, message: str, capsys: Capture):
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_recipes_cp_refuses_to_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", "digits-clip-joint", "my"]) == 0
    assert capsys.readouterr().out == "my.yaml\n"
    assert main(["recipes", "cp", "digits-clip-joint", "my"]) == 2
    assert capsys.readouterr().err == "error: my.yaml: already exists\n  hint: use another name, or add --force\n"
    assert main(["recipes", "cp", "digits-clip-joint", "my", "--force"]) == 0
    assert main(["recipes", "validate", "my.yaml", "loss=unicl"]) == 0
    assert main(["recipes", "cp", "quickstart", "nowhere/my"]) == 2


def test_recipes_validate_names_missing_corpora_on_stderr_only(tmp_path, monkeypatch, capsys: Capture):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "validate", "quickstart", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["data"] == "data.train.0.corpus: no finished corpus at quickstart/corpus"
    assert out.err == "note: data.train.0.corpus: no finished corpus at quickstart/corpus\n"


def test_recipes_diff_shows_what_an_arm_changes(capsys: Capture):
    assert main(["recipes", "diff", "digits-unicl", "digits-image-term"]) == 0
    assert capsys.readouterr().out == ('name: "digits-unicl" -> "digits-image-term"\nloss.terms.1: "text" -> -\n')
    assert main(["recipes", "diff", "digits-unicl", "digits-label-only", "--json"]) == 0
    assert {"key": "data.mix.labels", "a": "auto", "b": 1.0} in json.loads(capsys.readouterr().out)["changes"]


def test_run_lets_errors_through_for_callers_in_python():
    with pytest.raises(UniclError, match="no recipe 'x'"):
        run(["recipes", "show", "x"])


def test_the_tree_of_exceptions_at_the_top_of_errors_is_complete():
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "unicl_cli").rglob("*.py"))
    drawn = re.findall(r"── (\w+)", errors.__doc__)
    assert sorted(drawn) == sorted(
        ["UniclError", *re.findall(r"^class (\w+)\((?:UniclError|Stopped)\)", sources, re.M)]
    )
